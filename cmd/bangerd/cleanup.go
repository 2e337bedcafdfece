package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"banger/fs"
	"banger/vmm/agent"
	"banger/vmm/dns"
	"banger/vmm/network"
)

// runCleanup removes what banger made on this host, whatever state directory it belonged to, and logs each thing.
// It goes on after an error and gives them all. It is refused while a daemon serves the state directory.
func runCleanup(log *slog.Logger, f flags) error {
	root := os.Getuid() == 0
	def, _ := defaultPaths(root, os.Getenv) // an error is about the mount only, and mounts are found by themselves
	if f.state == "" {
		f.state = def.state
	}
	if _, statErr := os.Stat(f.state); statErr == nil {
		lockFile, err := lock(f.state)
		if err != nil {
			return err
		}
		defer lockFile.Close()
	}
	errs := []error{endProcesses(log, "/proc")}
	if root {
		errs = append(errs, network.Cleanup(log), forgetNames(f))
	}
	return errors.Join(append(errs, removeMounts(log))...)
}

// forgetNames takes the block of names out of the hosts file of the configuration.
func forgetNames(f flags) error {
	if err := f.complete(); err != nil {
		return err
	}
	c, err := readConfig(f.config, f.explicit["config"])
	if err != nil || c.HostsFile == notServed {
		return err
	}
	return dns.WriteHosts(c.HostsFile, c.Bridge, nil)
}

// madeByBanger tells a QEMU that banger started by the port of the agent among its arguments. A name that somebody may
// have given another VM would not do.
func madeByBanger(cmdline []byte) bool {
	args := strings.Split(strings.TrimRight(string(cmdline), "\x00"), "\x00")
	if !strings.HasPrefix(filepath.Base(args[0]), "qemu-system-") {
		return false
	}
	for _, a := range args[1:] {
		if strings.HasPrefix(a, "virtserialport,") && strings.HasSuffix(a, ",name="+agent.PortName) {
			return true
		}
	}
	return false
}

// endProcesses kills through pidfds, so that a pid that is reused meanwhile is not hit.
func endProcesses(log *slog.Logger, proc string) error {
	entries, err := os.ReadDir(proc)
	if err != nil {
		return fmt.Errorf("cannot list the processes: %w", err)
	}
	var errs []error
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if err := endProcess(log, proc, pid); err != nil {
			errs = append(errs, fmt.Errorf("cannot end the process %d: %w", pid, err))
		}
	}
	return errors.Join(errs...)
}

func endProcess(log *slog.Logger, proc string, pid int) error {
	path := filepath.Join(proc, strconv.Itoa(pid), "cmdline")
	if b, err := os.ReadFile(path); err != nil || !madeByBanger(b) {
		return nil
	}
	// Those in another network namespace are another's, as its links and tables are.
	theirs, err := os.Readlink(filepath.Join(proc, strconv.Itoa(pid), "ns/net"))
	if ours, e := os.Readlink(filepath.Join(proc, "self/ns/net")); err == nil && e == nil && ours != theirs {
		return nil
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return ignoreGone(err)
	}
	defer unix.Close(fd)
	// Read again now that the pid is held.
	if b, err := os.ReadFile(path); err != nil || !madeByBanger(b) {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
		return ignoreGone(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(max(0, time.Until(deadline).Milliseconds())))
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return err
		case n == 0:
			return errors.New("it does not end within 10 s of SIGKILL")
		}
		log.Info("ended process", "pid", pid)
		return nil
	}
}

func ignoreGone(err error) error {
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// removeMounts detaches the mounts of banger that no daemon serves any more.
func removeMounts(log *slog.Logger) error {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("cannot list the mounts: %w", err)
	}
	var errs []error
	for _, dir := range fs.Mounts(b) {
		if !dead(dir) {
			continue
		}
		err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EPERM) {
			err = exec.Command("fusermount3", "-u", "-z", "--", dir).Run()
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("cannot unmount %s: %w", dir, err))
			continue
		}
		log.Info("unmounted", "mount", dir)
	}
	return errors.Join(errs...)
}

// dead reports whether nobody serves the mount: ENOTCONN. One that does not answer within 2 s is served by somebody who is stopped.
func dead(dir string) bool {
	answer := make(chan error, 1)
	go func() {
		var st unix.Statfs_t
		answer <- unix.Statfs(dir, &st) // attributes may still be in the kernel's cache
	}()
	select {
	case err := <-answer:
		return errors.Is(err, unix.ENOTCONN)
	case <-time.After(2 * time.Second):
		return false
	}
}
