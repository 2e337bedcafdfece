#!/bin/sh
# Makes the suite's cloud image at $1: Debian bookworm with its kernel for clouds, systemd, systemd-networkd, and cloud-init, behind
# a partition table and a boot loader, as a compressed qcow2. Nothing is mounted. It is a real one but for what would cost an
# emulated machine minutes: documentation, modules for hardware that is not there, and the steps of cloud-init that configure
# packages, locales, users and disks are left out; syslinux boots it instead of GRUB.
set -eu
out=$1
work=$(mktemp -d "${TMPDIR:-/tmp}/banger-cloud-XXXXXX")
trap 'rm -rf "$work"' EXIT
root=$work/root
export DEBIAN_FRONTEND=noninteractive LC_ALL=C PATH="$PATH:/usr/sbin:/sbin"

# shellcheck disable=SC2016 # hooks expand $1 themselves
mmdebstrap --quiet --mode=root --variant=minbase \
	--include=linux-image-cloud-amd64,systemd-sysv,udev,dbus,cloud-init,iproute2,busybox-static \
	--aptopt='Apt::Install-Recommends "false"' \
	--dpkgopt=force-unsafe-io \
	--dpkgopt='path-exclude=/usr/share/doc/*' \
	--dpkgopt='path-exclude=/usr/share/man/*' \
	--dpkgopt='path-exclude=/usr/share/locale/*' \
	--dpkgopt='path-exclude=/usr/share/i18n/*' \
	--dpkgopt='path-exclude=/lib/udev/hwdb.d/*' \
	--dpkgopt='path-exclude=/lib/modules/*/kernel/arch/*' \
	--dpkgopt='path-exclude=/lib/modules/*/kernel/sound/*' \
	--dpkgopt='path-exclude=/lib/modules/*/kernel/drivers/gpu/*' \
	--dpkgopt='path-exclude=/lib/modules/*/kernel/drivers/infiniband/*' \
	--dpkgopt='path-exclude=/lib/modules/*/kernel/drivers/net/ethernet/*' \
	--essential-hook='mkdir -p "$1/etc/initramfs-tools/conf.d"' \
	--essential-hook='printf "MODULES=list\n" >"$1/etc/initramfs-tools/conf.d/banger"' \
	--essential-hook='printf "virtio_pci\nvirtio_blk\n" >"$1/etc/initramfs-tools/modules"' \
	bookworm "$root"

chroot "$root" systemctl --quiet enable systemd-networkd
chroot "$root" systemctl --quiet mask apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer fstrim.timer getty-static.service
echo 'LABEL=cloudroot / ext4 defaults 0 1' >"$root/etc/fstab"
: >"$root/etc/machine-id"
rm -f "$root"/etc/hostname "$root"/var/cache/apt/*.bin "$root"/var/lib/apt/lists/*Packages* "$root"/boot/System.map*
cat >"$root/etc/cloud/cloud.cfg.d/95_suite.cfg" <<'END'
datasource_list: [NoCloud, None]
cloud_init_modules: [bootcmd, set_hostname, update_hostname]
cloud_config_modules: [runcmd]
cloud_final_modules: [scripts-user, final-message]
END
mkdir -p "$root/www"
echo hello from a cloud image >"$root/www/index.html"
cat >"$root/etc/systemd/system/hello.service" <<'END'
[Unit]
Description=a page on port 80
[Service]
ExecStart=/bin/busybox httpd -f -p 80 -h /www
[Install]
WantedBy=multi-user.target
END
chroot "$root" systemctl --quiet enable hello.service

kernel=$(ls "$root/boot" | sed -n 's/^vmlinuz-//p')
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
mke2fs -q -t ext4 -L cloudroot -d "$root" "$work/rootfs" 800M
truncate -s 850M "$work/disk"
sfdisk --quiet "$work/disk" <<'END'
label: dos
start=1MiB, size=48MiB, type=c, bootable
start=49MiB, type=83
END
dd if=/usr/lib/syslinux/mbr/mbr.bin of="$work/disk" conv=notrunc status=none
dd if="$work/boot" of="$work/disk" bs=1M seek=1 conv=notrunc,sparse status=none
dd if="$work/rootfs" of="$work/disk" bs=1M seek=49 conv=notrunc,sparse status=none
qemu-img convert -c -O qcow2 -o compression_type=zstd "$work/disk" "$out"
