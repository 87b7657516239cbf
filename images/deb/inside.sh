#!/bin/sh
# In the machine that images/test-deb.sh boots, with both packages installed: the units under a real systemd, in their
# sandboxes. The agents speak to each other by vsock's loopback. Says on the console what fails; `all well` is the end.

finish() {
    sync
    systemctl poweroff --force --force
    exit
}
fail() {
    echo "test-deb: in the machine: $*"
    systemctl status --no-pager --lines 0 ballast-host ballast-guest
    journalctl --no-pager --boot --lines 60
    finish
}
# Tries for a minute: this machine may be emulated, on a busy host.
until_so() {
    for _ in $(seq 60); do
        ! "$@" >/dev/null 2>&1 || return 0
        sleep 1
    done
    fail "after a minute not so: $*"
}
show() { systemctl show --value --property "$2" "$1"; }
is() { [ "$(show "$1" "$2")" = "$3" ]; }
connected() { ballast-guest status | grep -q '^connected' && ballast-host status --json | grep -q '"agent": true'; }

for unit in ballast-host ballast-guest; do
    until_so is $unit ActiveState active
    is $unit Type notify || fail "$unit does not notify"
done
until_so connected
echo "test-deb: in the machine: both agents are active and connected after $(cut -d ' ' -f 1 /proc/uptime) s"
until_so eval 'show ballast-host StatusText | grep -q "^0 VMs, 1 with an agent"'
[ "$(stat -c '%a %U %G' /run/ballast/control.sock)" = "660 root ballast" ] || fail "$(ls -l /run/ballast)"
[ "$(stat -c '%a %U' /var/lib/ballast)" = "700 root" ] || fail "$(ls -ld /var/lib/ballast)"
# What a sandbox that is too tight looks like.
! journalctl --boot --unit ballast-host --unit ballast-guest | grep -i -e 'not permitted' -e denied -e 'read-only' ||
    fail "a sandbox forbids something"

for unit in ballast-host ballast-guest; do
    is $unit NRestarts 0 || fail "$unit was restarted"
    kill -STOP "$(show $unit MainPID)"
    until_so is $unit NRestarts 1
    until_so is $unit ActiveState active
done
until_so connected
echo "test-deb: in the machine: both agents were stopped, and restarted by the watchdog"

before=$(show ballast-host MainPID)
systemctl reload ballast-host || fail "the daemon does not reload"
is ballast-host MainPID "$before" || fail "a reload restarts the daemon"
dpkg --install --force-confdef --force-confold /m/host_99.deb >/tmp/dpkg 2>&1 || fail "$(cat /tmp/dpkg)"
until_so is ballast-host ActiveState active
! is ballast-host MainPID "$before" || fail "an upgrade does not restart the daemon"
until_so connected

systemctl stop ballast-host || fail "the daemon does not stop"
is ballast-host Result success || fail "the daemon ends with $(show ballast-host Result)"
# The other agent's socket is in the same folder.
ballast-guest status >/dev/null || fail "with the daemon, the guest agent's socket has gone"
systemctl start ballast-host
dpkg --purge ballast-host ballast-guest >/tmp/dpkg 2>&1 || fail "$(cat /tmp/dpkg)"
[ ! -e /run/ballast ] || fail "purging leaves $(ls -d /run/ballast /run/ballast/*)"
[ ! -e /var/lib/ballast ] || fail "purging leaves the journal"
for unit in ballast-host ballast-guest; do
    ! systemctl is-active --quiet $unit || fail "purging leaves $unit running"
done
echo "test-deb: in the machine: all well"
finish
