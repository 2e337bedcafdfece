package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"banger/fs"
	"banger/internal/host"
	"banger/internal/printable"
	"banger/vmm/dns"
	"banger/vmm/network"
	"banger/vmm/qemu"
)

// left is a thing that a daemon left on this host.
type left struct {
	text   string // for people, printable
	remove func() error
}

// cleaner finds what a cleanup removes.
type cleaner struct {
	stateDir string
	instance string            // of stateDir; empty if it has none
	held     bool              // a process has stateDir locked
	all      bool              // of whatever state directory that no living daemon has
	living   map[string]string // state directories of living daemons by instance
}

// runCleanup removes what daemons of one state directory, or with all those that do not live, left on
// this host. It lists that and asks first. A living daemon's own are never touched. It goes on after an
// error and returns them all.
func runCleanup(f flags, in *os.File, out io.Writer) error {
	root := os.Getuid() == 0
	if def, err := defaultPaths(root, os.Getenv); f.state == "" {
		if def.state == "" {
			return err
		}
		f.state = def.state
	}
	state, err := filepath.Abs(f.state)
	if err != nil {
		return err
	}
	c := cleaner{stateDir: state, all: f.all, living: livingDaemons()}
	if _, statErr := os.Stat(state); statErr == nil {
		locked, err := lock(state) // no daemon begins meanwhile
		if err == nil {
			defer locked.Close()
		} else if c.held = true; !f.all {
			return err
		}
		if c.instance, err = readInstance(state); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	found, err := c.find(f, root)
	if err != nil {
		return err
	}
	if len(found) == 0 {
		fmt.Fprintln(out, "There is nothing to remove.")
		return nil
	}
	for _, l := range found {
		fmt.Fprintln(out, l.text)
	}
	if !f.yes {
		if err := confirm(in, out, len(found)); err != nil {
			return err
		}
	}
	var errs []error
	for _, l := range found {
		if err := l.remove(); err != nil {
			errs = append(errs, fmt.Errorf("cannot remove %s: %w", l.text, err))
			continue
		}
		fmt.Fprintln(out, "removed", l.text)
	}
	return errors.Join(errs...)
}

// confirm asks whoever is at the terminal.
func confirm(in *os.File, out io.Writer, count int) error {
	if _, err := unix.IoctlGetTermios(int(in.Fd()), unix.TCGETS); err != nil {
		return errors.New("nothing was removed: add --yes to remove what is listed")
	}
	fmt.Fprintf(out, "Remove all %d? [y/N] ", count)
	answer, err := bufio.NewReader(io.LimitReader(in, 64)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return nil
	}
	return errors.New("nothing was removed")
}

// livingDaemons finds the daemons of this user by the locks of their state directories, and gives
// those directories by instance.
func livingDaemons() map[string]string {
	living := make(map[string]string)
	for _, l := range host.LockedFiles(lockFile) {
		if l.PID == os.Getpid() {
			continue
		}
		dir := filepath.Dir(l.Path)
		// A daemon may have a root directory of its own.
		if id, err := readInstance(filepath.Join("/proc", strconv.Itoa(l.PID), "root", dir)); err == nil {
			living[id] = dir
		}
	}
	return living
}

// wants reports whether what an instance left is to be removed.
func (c *cleaner) wants(instance string) bool {
	_, lives := c.living[instance]
	own := instance != "" && instance == c.instance
	return !lives && (own && !c.held || c.all && !own)
}

func (c *cleaner) find(f flags, root bool) ([]left, error) {
	found, err := c.machines("/proc")
	if err != nil {
		return nil, err
	}
	if err := f.complete(); err != nil {
		return nil, err
	}
	if root {
		names := true
		links, err := network.Leftovers()
		if err != nil {
			return nil, err
		}
		settings, err := readConfig(f.config, f.explicit["config"])
		if err != nil {
			return nil, err
		}
		for _, l := range links {
			if c.wants(l.Instance) {
				found = append(found, left{printable.Sentence(l.Text), l.Remove})
			} else if l.Text == "link "+settings.Bridge {
				names = false // another daemon's
			}
		}
		if path := settings.HostsFile; names && path != notServed && dns.HasHosts(path, settings.Bridge) {
			found = append(found, left{"names in " + path, func() error { return dns.WriteHosts(path, settings.Bridge, nil) }})
		}
	}
	mounts, err := c.mounts(f.mount)
	return append(found, mounts...), err
}

// machines finds the QEMUs. Those in another network namespace are another's, as its links and tables are.
func (c *cleaner) machines(proc string) ([]left, error) {
	entries, err := os.ReadDir(proc)
	if err != nil {
		return nil, fmt.Errorf("cannot list the processes: %w", err)
	}
	ours, oursErr := os.Readlink(filepath.Join(proc, "self/ns/net"))
	var found []left
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		dir := filepath.Join(proc, e.Name())
		stateDir, uuid := c.owner(dir)
		if stateDir == "" {
			continue
		}
		if theirs, err := os.Readlink(filepath.Join(dir, "ns/net")); err == nil && oursErr == nil && ours != theirs {
			continue
		}
		found = append(found, left{fmt.Sprintf("process %d, QEMU of the VM %s of %s", pid, printable.Escape(uuid), printable.Escape(stateDir)),
			func() error { return c.endProcess(dir, pid) }})
	}
	return found, nil
}

// owner gives the state directory and the VM of a QEMU that is to be ended; empty for any other process.
func (c *cleaner) owner(dir string) (stateDir, uuid string) {
	b, err := os.ReadFile(filepath.Join(dir, "cmdline"))
	if err != nil || len(b) == 0 {
		return "", ""
	}
	stateDir, uuid = qemu.Owner(strings.Split(strings.TrimRight(string(b), "\x00"), "\x00"))
	// Anybody may start a process that names a directory of his, which may never answer.
	if stateDir == "" || !answers(func() bool { return c.abandoned(dir, stateDir) }) {
		return "", ""
	}
	return stateDir, uuid
}

// abandoned reports whether what was started for a state directory is to be removed.
func (c *cleaner) abandoned(dir, stateDir string) bool {
	if sameDir(stateDir, c.stateDir) {
		return !c.held
	}
	if !c.all {
		return false
	}
	// As the process sees it, which may have a root of its own.
	used, err := inUse(filepath.Join(dir, "root", stateDir))
	return !used && err == nil
}

func sameDir(a, b string) bool {
	if a == b {
		return true
	}
	first, err1 := os.Stat(a)
	second, err2 := os.Stat(b)
	return err1 == nil && err2 == nil && os.SameFile(first, second)
}

// endProcess kills through a pidfd, so that a pid that is reused meanwhile is not hit.
func (c *cleaner) endProcess(dir string, pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return ignoreGone(err)
	}
	defer unix.Close(fd)
	// Read again now that the pid is held.
	if stateDir, _ := c.owner(dir); stateDir == "" {
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
		return nil
	}
}

func ignoreGone(err error) error {
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// mounts finds the mounts of banger that no daemon serves any more: the one that the daemon's is, or all.
func (c *cleaner) mounts(dir string) ([]left, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("cannot list the mounts: %w", err)
	}
	var found []left
	for _, at := range fs.Mounts(b) {
		if (c.all || at == dir) && dead(at) {
			found = append(found, left{"mount " + printable.Name(at), func() error { return unmount(at) }})
		}
	}
	return found, nil
}

func unmount(dir string) error {
	err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EPERM) {
		err = exec.Command("fusermount3", "-u", "-z", "--", dir).Run()
	}
	return err
}

// dead reports whether nobody serves the mount: ENOTCONN.
func dead(dir string) bool {
	return answers(func() bool {
		var st unix.Statfs_t
		return errors.Is(unix.Statfs(dir, &st), unix.ENOTCONN) // attributes may still be in the kernel's cache
	})
}

// answerWait is how long a file system may take to answer.
const answerWait = 2 * time.Second

// answers gives what f says, false after answerWait: f asks a file system whose server may be stopped.
func answers(f func() bool) bool {
	said := make(chan bool, 1)
	go func() { said <- f() }() // ends when the file system answers, at the latest with this process
	select {
	case yes := <-said:
		return yes
	case <-time.After(answerWait):
		return false
	}
}
