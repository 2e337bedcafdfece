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

// No VM's user can enter the state directory, so QEMU and qemu-img inherit its files as
// descriptors. QEMU opens most of them through a set of descriptors (qemu(1), -add-fd), which has
// one for each way of opening the file. What they open with open(2) goes through /proc/self/fd.
// That opens the file anew and needs its mode to permit it: kernels, initramfs and root disks of
// images are readable by all, in a directory that only root enters.

// Names of the sockets in a VM's directory.
const (
	qmpSocket     = "qmp"
	agentSocket   = "agent"
	consoleSocket = "console"
)

var socketNames = []string{qmpSocket, agentSocket, consoleSocket}

// firstFD is the number of the first inherited descriptor; 0 to 2 are the standard ones.
const firstFD = 3

// fdName is the kind of an inherited descriptor.
type fdName string

const (
	fdQMP     fdName = qmpSocket
	fdAgent   fdName = agentSocket
	fdConsole fdName = consoleSocket
	fdTap     fdName = "tap"
	fdVsock   fdName = "vsock"
	fdBoot    fdName = "boot" // a kernel or an initramfs
	fdFile    fdName = "file" // of a set of descriptors
)

// inheritance is one descriptor that QEMU inherits.
type inheritance struct {
	name  fdName
	path  string // of a file; empty for sockets, the tap and vsock
	flags int    // of open(2), for path
}

// redirection returns the operator by which a shell would open the file.
func (i inheritance) redirection() string {
	switch {
	case i.flags&os.O_APPEND != 0:
		return ">>"
	case i.flags&os.O_RDWR != 0:
		return "<>"
	}
	return "<"
}

// open opens the file of an inheritance that has a path.
func (i inheritance) open(spec *vmm.Spec) (*os.File, error) {
	switch {
	case i.flags&os.O_APPEND != 0:
		return host.OpenOrCreate(i.path, i.flags, host.AnyOwner)
	case filepath.Dir(i.path) == vmm.DisksDir(spec.Dir):
		return host.OpenRegular(i.path, i.flags, spec.UID)
	}
	f, err := os.OpenFile(i.path, i.flags, 0)
	if err == nil && i.name == fdBoot && spec.UID >= 0 {
		if err = checkReadable(f); err != nil {
			f.Close()
		}
	}
	return f, err
}

// checkReadable refuses an image's file that a VMM could not open again.
func checkReadable(f *os.File) error {
	info, err := f.Stat()
	if err == nil && info.Mode()&0o004 == 0 {
		err = fmt.Errorf("%s has the mode %04o, VMMs cannot read it: write chmod 644",
			f.Name(), info.Mode().Perm())
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

// noBacking keeps QEMU from opening a file that an image's header names.
var noBacking = json.RawMessage("null")

// baseNode returns the node of d's base.
func baseNode(d vmm.Disk, name, file string) blockNode {
	n := blockNode{
		Driver: d.BaseFormat, Name: name, ReadOnly: true,
		File: blockFile{"file", file, "off"},
	}
	if d.BaseFormat == qcow2 {
		n.Backing = noBacking
	}
	return n
}

// diskNode returns the node of d. base is the node of d's base or its name, nil for none.
func diskNode(d vmm.Disk, name, file string, base any) blockNode {
	n := blockNode{
		Driver: d.Format, Name: name, ReadOnly: d.ReadOnly, Discard: "unmap",
		File: blockFile{Driver: "file", Filename: file},
	}
	switch {
	case base != nil:
		n.Backing = mustJSON(base)
	case d.Format == qcow2:
		n.Backing = noBacking
	}
	return n
}

// mustJSON is for values of this package's types, all of which can be encoded.
func mustJSON(v any) json.RawMessage {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return text
}

// selfFD returns the path by which a process opens an inherited file again.
func selfFD(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// through returns a short path of a file in an open directory.
func through(dir *os.File, name string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), name)
}

// bind makes a socket in dir, in place of one of an earlier run. Nobody listens on it yet: the
// first process that does is QEMU, and the kernel names it to every client (SO_PEERCRED of unix(7)
// is the process that called listen(2)).
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

func removeSockets(dir string) {
	for _, name := range socketNames {
		os.Remove(filepath.Join(dir, name))
	}
}
