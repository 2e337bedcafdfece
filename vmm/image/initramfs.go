package image

import (
	"bytes"
	"path"
	"sort"
	"strings"
	"time"

	"github.com/cavaliergopher/cpio"
)

// epoch is the time of every file in an initramfs, so that the same inputs give the same bytes.
var epoch = time.Unix(0, 0)

// entry is one file of an initramfs.
type entry struct {
	name         string // without a leading slash
	mode         cpio.FileMode
	data         []byte // content, or where a symbolic link points
	major, minor uint32 // of a device node
}

func dirEntry(name string, perm cpio.FileMode) entry {
	return entry{name: name, mode: cpio.TypeDir | perm}
}

func fileEntry(name string, perm cpio.FileMode, data []byte) entry {
	return entry{name: name, mode: cpio.TypeReg | perm, data: data}
}

func linkEntry(name, target string) entry {
	return entry{name: name, mode: cpio.TypeSymlink | 0o777, data: []byte(target)}
}

func deviceEntry(name string, perm cpio.FileMode, major, minor uint32) entry {
	return entry{name: name, mode: cpio.TypeChar | perm, major: major, minor: minor}
}

// Where the device numbers stand in the header of a newc archive (cpio(5), "New ASCII Format").
const (
	newcRdevMajor = 78
	newcRdevMinor = 86
)

// packInitramfs writes entries as a newc cpio archive, sorted by name, owned by root.
func packInitramfs(entries []entry) ([]byte, error) {
	entries = append([]entry(nil), entries...)
	// Parents sort before what is in them: "a" < "a/b".
	sort.Slice(entries, func(i, j int) bool { return entries[i].name < entries[j].name })
	var buf bytes.Buffer
	w := cpio.NewWriter(&buf)
	for i, e := range entries {
		h := &cpio.Header{
			Name:    e.name,
			Mode:    e.mode,
			Links:   1,
			ModTime: epoch,
			Inode:   int64(i + 1),
			Size:    int64(len(e.data)),
		}
		if e.mode.IsDir() {
			h.Links = 2
		}
		if err := w.Flush(); err != nil { // the padding of the entry before
			return nil, err
		}
		start := buf.Len()
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if e.mode&^cpio.ModePerm == cpio.TypeChar {
			// The library leaves a device's numbers 0.
			head := buf.Bytes()[start:]
			putHex(head[newcRdevMajor:], e.major)
			putHex(head[newcRdevMinor:], e.minor)
		}
		if _, err := w.Write(e.data); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// putHex writes v as eight hexadecimal digits.
func putHex(b []byte, v uint32) {
	const digits = "0123456789abcdef"
	for i := 7; i >= 0; i-- {
		b[i] = digits[v&15]
		v >>= 4
	}
}

// moduleNames are the kernel modules of the built-in image in the order in
// which they must be loaded. Those for PCI are for machines of the type q35.
var moduleNames = []string{
	"virtio_ring", "virtio", "virtio_mmio",
	"virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci",
	"virtio_console", "virtio_blk",
	"failover", "net_failover", "virtio_net",
	"virtio-rng", "virtio_balloon",
	"vsock", "vmw_vsock_virtio_transport_common", "vmw_vsock_virtio_transport",
	"button", "overlay",
}

// moduleList is the file that tells the agent which modules to load: absolute
// paths, one per line, in order.
const moduleList = "etc/banger/modules"

// guestFiles are the small files of the built-in image.
var guestFiles = []struct {
	name string
	text string
}{
	{"etc/group", "root:x:0:\nnogroup:x:65534:\n"},
	{"etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"},
	{"etc/passwd", "root::0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"},
	{"etc/profile", "export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root\nexport PS1='\\h:\\w\\$ '\n"},
	{"etc/resolv.conf", ""},
	{"etc/services", "ssh 22/tcp\ndomain 53/tcp\ndomain 53/udp\nhttp 80/tcp\nhttps 443/tcp\n"},
}

// dhcpScript is what busybox udhcpc runs, for guests on a network that banger
// does not configure (net = user).
const dhcpScript = `#!/bin/sh
case $1 in
deconfig) ip addr flush dev "$interface"; ip link set "$interface" up ;;
bound|renew)
	ip addr flush dev "$interface"
	ip addr add "$ip/$mask" dev "$interface"
	for r in $router; do ip route replace default via "$r" dev "$interface"; done
	for d in $dns; do echo "nameserver $d"; done >/etc/resolv.conf ;;
esac
`

// rootEntries is the built-in image's root file system. modules holds the
// content of each of moduleNames by its name.
func rootEntries(agent, busybox []byte, applets []string, modules map[string][]byte) []entry {
	entries := []entry{
		dirEntry("bin", 0o755), dirEntry("dev", 0o755), dirEntry("dev/pts", 0o755),
		dirEntry("etc", 0o755), dirEntry("etc/banger", 0o755),
		dirEntry("lib", 0o755), dirEntry("lib/modules", 0o755),
		dirEntry("mnt", 0o755), dirEntry("proc", 0o555), dirEntry("root", 0o700),
		dirEntry("run", 0o755), dirEntry("sys", 0o555), dirEntry("tmp", 0o1777),
		dirEntry("etc/udhcpc", 0o755), dirEntry("usr", 0o755),
		dirEntry("var", 0o755), dirEntry("var/log", 0o755),
		linkEntry("sbin", "bin"), linkEntry("usr/bin", "../bin"), linkEntry("usr/sbin", "../bin"),
		linkEntry("var/run", "../run"), linkEntry("var/tmp", "../tmp"),
		deviceEntry("dev/console", 0o600, 5, 1), deviceEntry("dev/null", 0o666, 1, 3),
		fileEntry("bin/busybox", 0o755, busybox),
		fileEntry("init", 0o755, agent),
		fileEntry("etc/udhcpc/default.script", 0o755, []byte(dhcpScript)),
	}
	for _, f := range guestFiles {
		entries = append(entries, fileEntry(f.name, 0o644, []byte(f.text)))
	}
	for _, a := range applets {
		entries = append(entries, linkEntry("bin/"+a, "busybox"))
	}
	var list strings.Builder
	for _, m := range moduleNames {
		name := path.Join("lib/modules", m+".ko")
		entries = append(entries, fileEntry(name, 0o644, modules[m]))
		list.WriteString("/" + name + "\n")
	}
	return append(entries, fileEntry(moduleList, 0o644, []byte(list.String())))
}
