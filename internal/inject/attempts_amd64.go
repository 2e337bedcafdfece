package inject

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"
)

// Attempt is one thing that a program which was taken over would try.
type Attempt struct {
	Name string
	Do   func(p *Process) (string, error) // what was found
}

// Result runs the attempt and describes what happened, in a line: a refusal by the error's name.
func (a Attempt) Result(p *Process) string {
	found, err := a.Do(p)
	var errno unix.Errno
	switch {
	case err == nil && found == "":
		return a.Name + ": done"
	case err == nil:
		return a.Name + ": " + found
	case errors.Is(err, ErrKilled):
		return a.Name + ": killed"
	case errors.As(err, &errno):
		return a.Name + ": " + unix.ErrnoName(errno)
	}
	return a.Name + ": " + err.Error()
}

// call is an attempt of one call.
func call(name string, number int, args ...any) Attempt {
	return Attempt{name, func(p *Process) (string, error) {
		_, err := p.Call(number, args...)
		return "", err
	}}
}

const here = unix.AT_FDCWD

// Open tries to read a path; of a directory it tells the names.
func Open(path string) Attempt {
	return Attempt{"open " + path, func(p *Process) (string, error) {
		fd, err := p.Call(unix.SYS_OPENAT, here, path, unix.O_RDONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			return "", err
		}
		defer p.Call(unix.SYS_CLOSE, fd)
		b := make([]byte, 4096)
		if n, err := p.Call(unix.SYS_GETDENTS64, fd, b, len(b)); err == nil {
			if err := p.First(b); err != nil {
				return "", err
			}
			return "directory of " + strings.Join(names(b[:n]), " "), nil
		}
		return "opened", nil
	}}
}

func names(entries []byte) (all []string) {
	for len(entries) > 0 {
		size := binary.NativeEndian.Uint16(entries[16:])
		name, _, _ := strings.Cut(string(entries[19:size]), "\x00")
		all = append(all, name)
		entries = entries[size:]
	}
	return all
}

// Change returns attempts to change the file system below a directory.
func Change(dir string) []Attempt {
	path := strings.TrimSuffix(dir, "/") + "/banger-was-here"
	return []Attempt{
		call("create in "+dir, unix.SYS_OPENAT, here, path, unix.O_CREAT|unix.O_WRONLY, 0o600),
		call("unnamed file in "+dir, unix.SYS_OPENAT, here, dir, unix.O_TMPFILE|unix.O_WRONLY, 0o600),
		call("mkdir in "+dir, unix.SYS_MKDIRAT, here, path, 0o700),
		call("symlink in "+dir, unix.SYS_SYMLINKAT, "/", here, path),
		call("fifo in "+dir, unix.SYS_MKNODAT, here, path, unix.S_IFIFO|0o600, 0),
	}
}

// Remove tries to remove a file.
func Remove(path string) Attempt {
	return call("unlink "+path, unix.SYS_UNLINKAT, here, path, 0)
}

// Connect tries to reach a stream socket of the host.
func Connect(name string, family int, address []byte) Attempt {
	return Attempt{"connect to " + name, func(p *Process) (string, error) {
		fd, err := p.Call(unix.SYS_SOCKET, family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return "", err
		}
		defer p.Call(unix.SYS_CLOSE, fd)
		_, err = p.Call(unix.SYS_CONNECT, fd, address, len(address))
		return "", err
	}}
}

// Unix tries to reach a Unix socket; a name that begins with @ is an abstract one.
func Unix(path string) Attempt {
	name := []byte(path)
	if name[0] == '@' {
		name[0] = 0
	} else {
		name = append(name, 0)
	}
	address := binary.NativeEndian.AppendUint16(nil, unix.AF_UNIX)
	return Connect(path, unix.AF_UNIX, append(address, name...))
}

// Inet returns an IPv4 address for socket calls.
func Inet(to netip.AddrPort) []byte {
	address := binary.NativeEndian.AppendUint16(nil, unix.AF_INET)
	address = binary.BigEndian.AppendUint16(address, to.Port())
	ip := to.Addr().As4()
	return append(append(address, ip[:]...), make([]byte, 8)...)
}

// TCP tries to reach a port.
func TCP(to netip.AddrPort) Attempt { return Connect(to.String(), unix.AF_INET, Inet(to)) }

// Datagram tries to send to a UDP port.
func Datagram(to netip.AddrPort) Attempt {
	return Attempt{"send to " + to.String(), func(p *Process) (string, error) {
		fd, err := p.Call(unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return "", err
		}
		defer p.Call(unix.SYS_CLOSE, fd)
		address := Inet(to)
		_, err = p.Call(unix.SYS_SENDTO, fd, "x", 1, 0, address, len(address))
		return "", err
	}}
}

// Other returns attempts on another process.
func Other(who string, pid int) []Attempt {
	iov := binary.NativeEndian.AppendUint64(nil, 0x1000)
	iov = binary.NativeEndian.AppendUint64(iov, 8)
	return []Attempt{
		call("signal to "+who, unix.SYS_KILL, pid, 0),
		call("trace of "+who, unix.SYS_PTRACE, unix.PTRACE_SEIZE, pid, 0, 0),
		call("memory of "+who, unix.SYS_PROCESS_VM_READV, pid, iov, 1, iov, 1, 0),
		call("pidfd of "+who, unix.SYS_PIDFD_OPEN, pid, 0),
	}
}

// Self says who the process is to itself, and whether it sees others.
var Self = []Attempt{
	{"pid", func(p *Process) (string, error) {
		pid, err := p.Call(unix.SYS_GETPID)
		return fmt.Sprint(pid), err
	}},
	{"host's name", func(p *Process) (string, error) {
		b := make([]byte, 6*65)
		if _, err := p.Call(unix.SYS_UNAME, b); err != nil {
			return "", err
		}
		err := p.First(b)
		return unix.ByteSliceToString(b[65:]), err
	}},
	{"working directory", func(p *Process) (string, error) {
		b := make([]byte, 4096)
		if _, err := p.Call(unix.SYS_GETCWD, b, len(b)); err != nil {
			return "", err
		}
		err := p.First(b)
		return unix.ByteSliceToString(b), err
	}},
	call("chroot", unix.SYS_CHROOT, "/"),
	call("pivot_root", unix.SYS_PIVOT_ROOT, "/", "/"),
	call("umount", unix.SYS_UMOUNT2, "/", 0),
	call("fsopen", unix.SYS_FSOPEN, "tmpfs", 0),
	call("open_tree", unix.SYS_OPEN_TREE, here, "/", unix.OPEN_TREE_CLONE),
	call("sethostname", unix.SYS_SETHOSTNAME, "x", 1),
}

// Last returns attempts that a filter of system calls answers by ending the process.
func Last() []Attempt {
	none := make([]byte, 16)
	return []Attempt{
		call("execve", unix.SYS_EXECVE, "/usr/bin/id", none, none),
		call("fork", unix.SYS_FORK),
		call("mount", unix.SYS_MOUNT, "tmpfs", "/", "tmpfs", 0, ""),
		call("setns", unix.SYS_SETNS, 0, 0),
		call("new user namespace", unix.SYS_UNSHARE, unix.CLONE_NEWUSER),
		call("setuid", unix.SYS_SETUID, 0),
	}
}
