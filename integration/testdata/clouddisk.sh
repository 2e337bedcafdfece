#!/bin/sh
# Makes the suite's cloud image at $2 of the Debian in the tar $1, which banger has built: its kernel for clouds and systemd, with
# systemd-networkd and cloud-init, behind a partition table and a boot loader, as a compressed qcow2. What is mounted goes away with the
# script's own mount namespace. It is a real one but for what would cost an emulated machine minutes: the stages of cloud-init behind
# its second, and the steps in that which configure locales, users and disks, are left out; syslinux boots it instead of GRUB.
set -eu
out=$2
work=$(mktemp -d "${TMPDIR:-/tmp}/banger-cloud-XXXXXX")
root=$work/root
trap 'umount -R "$root" 2>/dev/null || :; rm -rf "$work"' EXIT
export DEBIAN_FRONTEND=noninteractive LC_ALL=C PATH="$PATH:/usr/sbin:/sbin" INITRD=No

tar -C "$work" -xf "$1"
mv "$work"/built/*/root.img "$work/rootfs"
mkdir "$root"
mount -o loop "$work/rootfs" "$root"
mount -t proc proc "$root/proc"
mount --bind /dev "$root/dev"
cp /etc/resolv.conf "$root/etc/resolv.conf"
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
chmod 755 "$root/usr/sbin/policy-rc.d"
echo force-unsafe-io >"$root/etc/dpkg/dpkg.cfg.d/build"
chroot "$root" apt-get update -q
chroot "$root" apt-get install -q -y --no-install-recommends cloud-init busybox-static
rm -r "$root/usr/sbin/policy-rc.d" "$root/etc/dpkg/dpkg.cfg.d/build" "$root/etc/resolv.conf"
chroot "$root" apt-get clean
rm -f "$root"/var/lib/apt/lists/*Packages*

chroot "$root" systemctl --quiet enable systemd-networkd
echo 'LABEL=cloudroot / ext4 defaults 0 1' >"$root/etc/fstab"
cat >"$root/etc/cloud/cloud.cfg.d/95_suite.cfg" <<'END'
datasource_list: [NoCloud, None]
cloud_init_modules: [bootcmd, set_hostname, update_hostname]
END
chroot "$root" systemctl --quiet disable cloud-config cloud-final
mkdir -p "$root/www"
echo hello from a cloud image >"$root/www/index.html"
cat >"$root/etc/systemd/system/hello.service" <<'END'
[Unit]
Description=a page on port 80
[Service]
ExecStart=/bin/busybox httpd -f -p 80 -h /www
ExecStopPost=/bin/sh -c 'echo the page is gone >/dev/console'
[Install]
WantedBy=multi-user.target
END
chroot "$root" systemctl --quiet enable hello.service

kernel=$(ls "$root/boot" | sed -n 's/^vmlinuz-//p')
echo MODULES=list >"$root/etc/initramfs-tools/conf.d/banger"
printf 'virtio_pci\nvirtio_blk\n' >"$root/etc/initramfs-tools/modules"
INITRD=Yes chroot "$root" update-initramfs -c -k "$kernel"
cat >"$work/syslinux.cfg" <<'END'
SERIAL 0 115200
DEFAULT linux
PROMPT 0
LABEL linux
  KERNEL vmlinuz
  INITRD initrd.img
  APPEND root=LABEL=cloudroot rw console=tty0 console=ttyS0,115200
END
truncate -s 48M "$work/boot"
mkfs.vfat -n BOOT "$work/boot" >/dev/null
mcopy -i "$work/boot" "$root/boot/vmlinuz-$kernel" ::vmlinuz
mcopy -i "$work/boot" "$root/boot/initrd.img-$kernel" ::initrd.img
mcopy -i "$work/boot" "$work/syslinux.cfg" ::
syslinux --install "$work/boot"
rm -rf "$root"/boot/*
umount -R "$root"
e2label "$work/rootfs" cloudroot
e2fsck -fp "$work/rootfs"
resize2fs "$work/rootfs" 800M
truncate -s 850M "$work/disk"
sfdisk --quiet "$work/disk" <<'END'
label: dos
start=1MiB, size=48MiB, type=c, bootable
start=49MiB, type=83
END
dd if=/usr/lib/syslinux/mbr/mbr.bin of="$work/disk" conv=notrunc status=none
dd if="$work/boot" of="$work/disk" bs=1M seek=1 conv=notrunc,sparse status=none
dd if="$work/rootfs" of="$work/disk" bs=1M count=800 seek=49 conv=notrunc,sparse status=none
qemu-img convert -c -O qcow2 -o compression_type=zstd "$work/disk" "$out"
