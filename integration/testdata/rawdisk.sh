#!/bin/sh
# rawdisk.sh OUT KERNEL.deb: makes a small raw disk that boots by itself and has no agent: a boot loader, Debian's kernel for clouds, and an initramfs of
# busybox whose process 1 mounts the disk's second partition, counts its boots there, and powers off when the machine's power button is pressed.
set -eu
out=$1 deb=$2
PATH="$PATH:/usr/sbin:/sbin"
work=$(mktemp -d "${TMPDIR:-/tmp}/banger-raw-XXXXXX")
trap 'rm -rf "$work"' EXIT
dpkg-deb --fsys-tarfile "$deb" | tar -C "$work" -x --wildcards './boot/vmlinuz-*' '*/virtio*.ko' '*/button.ko' '*/evdev.ko'
root=$work/root
mkdir -p "$root/bin" "$root/dev" "$root/proc" "$root/sys" "$root/disk" "$root/etc/acpi/PWRF" "$root/var/log" "$root/var/run"
cp /bin/busybox "$root/bin/busybox"
for m in virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk button evdev; do
	cp "$(find "$work/lib" -name $m.ko)" "$root/$m.ko"
	echo "insmod /$m.ko" >>"$root/modules"
done
cat >"$root/init" <<'END'
#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
. /modules
until mount -t ext4 /dev/vda2 /disk; do sleep 0.1; done 2>/dev/null
echo boot >>/disk/log
sync
acpid
echo "booted $(grep -c boot /disk/log) times"
exec setsid cttyhack sh </dev/ttyS0 >/dev/ttyS0 2>&1
END
cat >"$root/etc/acpi/PWRF/00000080" <<'END'
#!/bin/busybox sh
echo button >>/disk/log
umount /disk
poweroff -f
END
chmod 755 "$root/init" "$root/etc/acpi/PWRF/00000080"
(cd "$root" && find . | busybox cpio -o -H newc 2>/dev/null | gzip >"$work/initrd")
cat >"$work/syslinux.cfg" <<'END'
SERIAL 0 115200
DEFAULT linux
LABEL linux
  KERNEL vmlinuz
  INITRD initrd
  APPEND console=ttyS0 panic=-1 mitigations=off cryptomgr.notests
END
truncate -s 20M "$work/fat"
mkfs.vfat -n BOOT "$work/fat" >/dev/null
mcopy -i "$work/fat" "$work"/boot/vmlinuz-* ::vmlinuz
mcopy -i "$work/fat" "$work/initrd" "$work/syslinux.cfg" ::
syslinux --install "$work/fat"
truncate -s 8M "$work/data"
mke2fs -q -t ext4 "$work/data"
truncate -s 30M "$out"
sfdisk --quiet "$out" <<'END'
label: dos
start=1MiB, size=20MiB, type=c, bootable
start=21MiB, size=8MiB, type=83
END
dd if=/usr/lib/syslinux/mbr/mbr.bin of="$out" conv=notrunc status=none
dd if="$work/fat" of="$out" bs=1M seek=1 conv=notrunc,sparse status=none
dd if="$work/data" of="$out" bs=1M seek=21 conv=notrunc,sparse status=none
