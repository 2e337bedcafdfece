package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"banger/internal/host"
)

// The mount point of the work disk, and the serial number that the host sets in its device.
const (
	workPoint  = "/work"
	workSerial = "work"
)

// workWait is how long the guest's first answer waits for the disk.
const workWait = 2 * time.Second

// resizeExt4 is EXT4_IOC_RESIZE_FS, _IOW('f', 16, __u64) (include/uapi/linux/ext4.h).
const resizeExt4 = 0x40086610

// workDisk is the VM's own disk: mounted once, and grown whenever the host has grown it.
type workDisk struct {
	tended chan struct{} // closed when it was first looked at
}

// tendWorkDisk mounts the disk and follows its growth in the background while the agent lives. It
// leaves a disk alone that holds anything but an ext4 without a partition table.
func tendWorkDisk() *workDisk {
	w := &workDisk{tended: make(chan struct{})}
	go func() {
		events, err := ueventSocket()
		if err != nil {
			log.Printf("growth of disks will not be seen: %v", err)
		}
		mounted := w.tend(false)
		close(w.tended)
		if err != nil {
			return
		}
		buf := make([]byte, 64<<10)
		for {
			n, err := unix.Read(events, buf)
			switch {
			case err == unix.EINTR:
			case err == unix.ENOBUFS: // some were lost
				mounted = w.tend(mounted)
			case err != nil:
				log.Printf("cannot hear of disks: %v", err)
				return
			case concernsDisk(buf[:n]):
				mounted = w.tend(mounted)
			}
		}
	}()
	return w
}

// wait returns when the disk was looked at, or after workWait.
func (w *workDisk) wait(ctx context.Context) {
	if w == nil {
		return
	}
	timer := time.NewTimer(workWait)
	defer timer.Stop()
	select {
	case <-w.tended:
	case <-timer.C:
	case <-ctx.Done():
	}
}

// tend mounts the disk, unless it was mounted before (then a user unmounted it), and grows its file
// system. It reports whether it was ever mounted.
func (w *workDisk) tend(before bool) bool {
	name := findWorkDisk("/sys")
	if name == "" {
		return before
	}
	device := filepath.Join("/dev", name)
	numbers := strings.TrimSpace(string(readFile("/sys/block/" + name + "/dev")))
	point := mountPoint(readFile("/proc/self/mountinfo"), numbers)
	if point == "" {
		if before || !isExt4(device) {
			return before
		}
		if err := mountWork(device); err != nil {
			log.Print(err)
			return false
		}
		point = workPoint
	}
	if err := growExt4(device, point); err != nil {
		log.Print(err)
	}
	return true
}

func mountWork(device string) error {
	if err := makeDir(workPoint, 0o755); err != nil {
		return fmt.Errorf("cannot mount the work disk: %w", err)
	}
	if err := unix.Mount(device, workPoint, "ext4", 0, ""); err != nil {
		return fmt.Errorf("cannot mount %s at %s: %w", device, workPoint, err)
	}
	return nil
}

// findWorkDisk returns the name of the work disk, empty if there is none.
func findWorkDisk(sys string) string { return findDisk(sys, workSerial) }

// findDisk returns the name of the disk with that serial number, empty if there is none.
func findDisk(sys, serial string) string {
	paths, _ := filepath.Glob(filepath.Join(sys, "block", "*", "serial"))
	for _, path := range paths {
		if strings.TrimSpace(string(readFile(path))) == serial {
			return filepath.Base(filepath.Dir(path))
		}
	}
	return ""
}

// mountPoint returns the mount point of the device MAJOR:MINOR, empty if there is none.
func mountPoint(mountinfo []byte, numbers string) string {
	for _, m := range host.Mounts(mountinfo) {
		if fmt.Sprintf("%d:%d", m.Major, m.Minor) == numbers {
			return m.Mountpoint
		}
	}
	return ""
}

// isExt4 looks for the superblock of ext2, 3 or 4: s_magic, at 56 after the first 1,024 bytes.
func isExt4(device string) bool {
	var magic [2]byte
	return readSuperblock(device, 56, magic[:]) == nil &&
		binary.LittleEndian.Uint16(magic[:]) == unix.EXT4_SUPER_MAGIC
}

// readSuperblock reads from an offset in the superblock of ext2, 3 or 4 on.
func readSuperblock(device string, at int64, b []byte) error {
	f, err := os.Open(device)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.ReadAt(b, 1024+at)
	return err
}

// growExt4 makes a mounted ext4 as long as its device; nothing happens when it is.
func growExt4(device, point string) error {
	var st unix.Statfs_t
	err := unix.Statfs(point, &st)
	if err != nil || st.Type != unix.EXT4_SUPER_MAGIC || st.Bsize <= 0 {
		return nil // another file system, which is its owner's
	}
	f, err := os.Open(device)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := f.Seek(0, 2)
	if err != nil {
		return err
	}
	blocks := uint64(size) / uint64(st.Bsize)
	dir, err := os.Open(point)
	if err != nil {
		return err
	}
	defer dir.Close()
	_, _, e := unix.Syscall(unix.SYS_IOCTL, dir.Fd(), resizeExt4, uintptr(unsafe.Pointer(&blocks)))
	if e != 0 {
		return fmt.Errorf("cannot grow the file system at %s to %d blocks: %w", point, blocks, e)
	}
	return nil
}

// ueventSocket receives the kernel's events of devices (netlink(7), NETLINK_KOBJECT_UEVENT).
func ueventSocket() (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC,
		unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return -1, err
	}
	const fromKernel = 1 // the group; udev's own is 2
	address := &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: fromKernel}
	if err := unix.Bind(fd, address); err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// concernsDisk reports whether an event is about a new disk or a disk's new length.
func concernsDisk(event []byte) bool {
	has := func(word string) bool {
		return bytes.Contains(event, []byte("\x00"+word+"\x00"))
	}
	return has("SUBSYSTEM=block") &&
		(has("ACTION=add") || bytes.Contains(event, []byte("\x00RESIZE=1")))
}
