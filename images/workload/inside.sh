#!/bin/sh
# Runs in the new Debian tree, while it is built: what servers would do when they start for the first time, and what
# needs its programs. Everything under /data becomes the second, writable disk.
set -eu
export LC_ALL=C
postgres=$(echo /usr/lib/postgresql/*/bin)
data=/data/postgres

stop() {
    [ ! -e "$data/postmaster.pid" ] || setpriv --reuid postgres --regid postgres --init-groups "$postgres/pg_ctl" stop -s -D "$data" -m immediate
}
# pg_ctl gives the server a session of its own, which Ctrl-C does not reach.
trap stop EXIT
trap 'exit 1' INT TERM

as_postgres() { setpriv --reuid postgres --regid postgres --init-groups "$@"; }

install -d -o postgres -g postgres -m 700 "$data"
as_postgres "$postgres/initdb" -D "$data" --no-sync --auth=trust --locale=C --encoding=UTF8 >/dev/null
cat /build/postgresql.conf >>"$data/postgresql.conf"
# The loader may be in another guest; nobody else reaches these networks.
echo 'host all all 0.0.0.0/0 trust' >>"$data/pg_hba.conf"
as_postgres "$postgres/pg_ctl" start -s -w -D "$data" -l /tmp/postgres.log -o '-F -k /tmp -c listen_addresses='
as_postgres "$postgres/createdb" -h /tmp bench
as_postgres "$postgres/pgbench" -h /tmp -i -q -s 5 bench >/dev/null 2>&1
as_postgres "$postgres/pg_ctl" stop -s -w -D "$data" -m fast

# A real program's sources for the compiler.
sed 's/^deb /deb-src /' /etc/apt/sources.list >/etc/apt/sources.list.d/sources.list
apt-get update -qq
cd /tmp
apt-get source -qq --download-only lua5.4 >/dev/null 2>&1
mkdir -p /data/source
tar -xzf lua5.4_*.orig.tar.gz -C /data/source --strip-components=2 --wildcards '*/src/*.[ch]'
[ -f /data/source/lvm.c ]
rm -f lua5.4_* /etc/apt/sources.list.d/sources.list

# The compiler of the Java workload is not needed any more.
mkdir -p /usr/local/lib/ballast
ecj -proc:none -nowarn -source 17 -target 17 -d /usr/local/lib/ballast /build/Heap.java
dpkg --purge --force-depends ecj libecj-java libeclipse-jdt-core-java >/dev/null 2>&1 || true

# More than a small guest's page cache can keep, and incompressible: neither zram nor any layer below makes it smaller.
mkdir -p /data/www /data/scratch
chmod 1777 /data/scratch
head -c 300M /dev/urandom >/data/noise
file=0
while [ $file -lt 2048 ]; do
    head -c 65536 /dev/urandom >"/data/www/$file"
    file=$((file + 1))
done

install -m 644 /build/nginx.conf /build/wrk.lua /usr/local/lib/ballast/
install -m 755 /build/latencies /usr/local/bin/latencies
printf '127.0.0.1 localhost guest\n' >/etc/hosts
