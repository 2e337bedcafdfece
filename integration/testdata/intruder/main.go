// Intruder does, with the rights that it was started with, all that a process can try on another
// and on paths, and prints a line for each attempt that the kernel did not refuse for want of
// rights.
//
//	intruder PID PATH...
package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: intruder PID PATH...")
		os.Exit(1)
	}
	pid, err := strconv.Atoi(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, "intruder:", err)
		os.Exit(1)
	}
	process(pid)
	for _, path := range os.Args[2:] {
		attack(path)
	}
}

// refusals are the errors for a lack of rights, and for a write to a directory.
var refusals = []error{unix.EACCES, unix.EPERM, unix.EISDIR}

// try prints what was possible. Any result but a refusal counts: ENOENT and EINVAL reveal facts
// too.
func try(what string, do func() error) {
	err := do()
	if !slices.ContainsFunc(refusals, func(r error) bool { return errors.Is(err, r) }) {
		fmt.Println(what+":", err)
	}
}

// process attacks a process, in every way that needs ptrace's rights, and by a signal.
func process(pid int) {
	runtime.LockOSThread()                                      // a tracer is a thread
	try("seize", func() error { return unix.PtraceSeize(pid) }) // unlike an attach it stops nobody
	word := make([]byte, 8)
	local := []unix.Iovec{{Base: &word[0], Len: 8}}
	remote := []unix.RemoteIovec{{Base: uintptr(unsafe.Pointer(&word[0])), Len: 8}}
	try("memory", func() error {
		_, err := unix.ProcessVMReadv(pid, local, remote, 0)
		return err
	})
	try("signal", func() error { return unix.Kill(pid, 0) })
	try("priority", func() error { return unix.Setpriority(unix.PRIO_PROCESS, pid, 19) })
	for fd := range 64 {
		try(fmt.Sprint("descriptor ", fd), func() error {
			pidfd, err := unix.PidfdOpen(pid, 0)
			if err != nil {
				return err
			}
			defer unix.Close(pidfd)
			_, err = unix.PidfdGetfd(pidfd, fd, 0)
			return err
		})
	}
	base := fmt.Sprintf("/proc/%d/", pid)
	for _, name := range []string{"mem", "environ", "auxv", "maps", "pagemap", "io", "syscall"} {
		try(name, func() error {
			f, err := os.Open(base + name)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = f.Read(word)
			return err
		})
	}
	for _, name := range []string{"fd", "map_files", "ns"} {
		try(name, func() error {
			names, err := os.ReadDir(base + name)
			if err == nil && len(names) > 0 {
				_, err = os.Readlink(base + name + "/" + names[0].Name())
			}
			return err
		})
	}
	for _, name := range []string{"root", "cwd", "exe"} {
		try(name, func() error {
			_, err := os.Readlink(base + name)
			return err
		})
	}
	for _, name := range []string{"mem", "oom_score_adj", "coredump_filter"} {
		try("write "+name, func() error {
			f, err := os.OpenFile(base+name, os.O_WRONLY, 0)
			if err == nil {
				f.Close()
			}
			return err
		})
	}
}

// attack opens a path, connects to it, and changes it. A permitted open of a socket is ENXIO.
func attack(path string) {
	for what, flags := range map[string]int{"read": os.O_RDONLY, "write": os.O_WRONLY} {
		try(what+" "+path, func() error {
			f, err := os.OpenFile(path, flags|unix.O_NONBLOCK, 0)
			if err == nil {
				f.Close()
			}
			return err
		})
	}
	try("connect "+path, func() error {
		dir, err := os.MkdirTemp("", "")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		short := dir + "/s" // an address has 107 bytes (unix(7))
		if err := os.Symlink(path, short); err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Connect(fd, &unix.SockaddrUnix{Name: short})
	})
	try("mode of "+path, func() error { return os.Chmod(path, 0o777) })
	try("owner of "+path, func() error { return os.Lchown(path, os.Getuid(), os.Getgid()) })
	try("name of "+path, func() error { return os.Rename(path, path+".moved") })
	plain := strings.TrimRight(path, "/")
	try("link to "+path, func() error { return os.Link(path, plain+".link") })
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		try("new in "+path, func() error { return os.Mkdir(path+"/new", 0o700) })
	}
	try("watch of "+path, func() error {
		fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		_, err = unix.InotifyAddWatch(fd, path, unix.IN_ALL_EVENTS)
		return err
	})
}
