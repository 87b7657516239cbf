#!/bin/sh
# Runs in the Debian tree while it is built, see build-debian.sh.
set -eu

# The boot loader's two files, made by Debian's own GRUB, which then leaves again: nothing in the image runs it. The
# prefix names no disk: GRUB takes the one that it was started from.
mkdir -p /boot/grub/i386-pc
grub-mkimage --format=i386-pc --output=/boot/grub/i386-pc/core.img --prefix='(,msdos1)/boot/grub' \
    biosdisk part_msdos ext2 normal linux serial terminal echo
cp /usr/lib/grub/i386-pc/boot.img /boot/grub/i386-pc/
apt-get purge -qq -y --autoremove grub-pc-bin grub-common >/dev/null

systemctl enable systemd-networkd systemd-resolved >/dev/null 2>&1

# Nobody can log in: no password, no key. See images/README.md for how to let yourself in.
passwd --quiet --lock root
