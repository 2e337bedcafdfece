package qemu

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"banger/internal/host"
	"banger/vmm"

	"golang.org/x/sys/unix"
)

// No VMM's user can enter the state directory. What QEMU and qemu-img need of it they inherit as
// descriptors: what QEMU opens by itself, through the name of a set of descriptors (qemu(1),
// -add-fd), one for each way of opening it; what they open with open(2), through /proc/self/fd.
// The latter opens the file anew and so asks for its mode: kernels, initramfs and root disks of
// images are readable by all in a directory that only root enters.

// inheritance is one descriptor that QEMU inherits.
type inheritance struct {
	name  fdName
	path  string // of a file; empty for sockets, the tap and vsock
	flags int    // to open the path with
}

// redirection is how a shell would open the file.
func (i inheritance) redirection() string {
	switch {
	case i.flags&os.O_APPEND != 0:
		return ">>"
	case i.flags&os.O_RDWR != 0:
		return "<>"
	}
	return "<"
}

// open opens a file that QEMU inherits.
func (i inheritance) open(spec *vmm.Spec) (*os.File, error) {
	switch {
	case i.flags&os.O_APPEND != 0:
		return host.OpenOrCreate(i.path, i.flags, host.AnyOwner)
	case filepath.Dir(i.path) == vmm.DisksDir(spec.Dir):
		return host.OpenRegular(i.path, i.flags, spec.UID)
	}
	f, err := os.OpenFile(i.path, i.flags, 0)
	if err == nil && i.name == fdBoot && spec.UID >= 0 {
		err = checkReadable(f)
		if err != nil {
			f.Close()
		}
	}
	return f, err
}

// checkReadable reports an image's file that a VMM could not open again.
func checkReadable(f *os.File) error {
	info, err := f.Stat()
	if err == nil && info.Mode()&0o004 == 0 {
		err = fmt.Errorf("%s has the mode %04o, VMMs cannot read it: write chmod 644", f.Name(), info.Mode().Perm())
	}
	return err
}

// blockNode is a node of QEMU's block graph (BlockdevOptions of qapi/block-core.json).
type blockNode struct {
	Driver   string          `json:"driver"`
	Name     string          `json:"node-name,omitempty"`
	ReadOnly bool            `json:"read-only"`
	Discard  string          `json:"discard,omitempty"`
	Backing  json.RawMessage `json:"backing,omitempty"`
	File     blockFile       `json:"file"`
}

type blockFile struct {
	Driver   string `json:"driver"`
	Filename string `json:"filename"`
	// Locking is "off" for a file that all VMs share and nobody writes: a lock of one VMM would
	// keep the others from it.
	Locking string `json:"locking,omitempty"`
}

// noBacking keeps QEMU from opening whatever a header may name.
var noBacking = json.RawMessage("null")

// baseNode is what d is an overlay of.
func baseNode(d vmm.Disk, name, file string) blockNode {
	n := blockNode{Driver: d.BaseFormat, Name: name, ReadOnly: true, File: blockFile{"file", file, "off"}}
	if d.BaseFormat == "qcow2" {
		n.Backing = noBacking
	}
	return n
}

// diskNode is d; base is empty or what d is an overlay of, as a reference or a node.
func diskNode(d vmm.Disk, name, file string, base any) blockNode {
	n := blockNode{Driver: d.Format, Name: name, ReadOnly: d.ReadOnly, Discard: "unmap", File: blockFile{Driver: "file", Filename: file}}
	switch {
	case base != nil:
		n.Backing = mustJSON(base)
	case d.Format == "qcow2":
		n.Backing = noBacking
	}
	return n
}

// mustJSON is for values of this package's types, of which all can be written.
func mustJSON(v any) json.RawMessage {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return text
}

// selfFD is the path by which a process opens again what it inherited.
func selfFD(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// through names a file of an opened directory in few bytes.
func through(dir *os.File, name string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), name)
}

// bind makes a socket in dir in place of what an earlier run left there. Nobody listens on it
// yet: whoever is connected to is QEMU, and the kernel says so (SO_PEERCRED of unix(7) names who
// called listen(2)).
func bind(dir *os.File, name string) (*os.File, error) {
	if err := unix.Unlinkat(int(dir.Fd()), name, 0); err != nil && err != unix.ENOENT {
		return nil, fmt.Errorf("cannot remove %s: %w", name, err)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: through(dir, name)}); err != nil {
		f.Close()
		return nil, fmt.Errorf("cannot bind the socket %s: %w", name, err)
	}
	return f, nil
}
