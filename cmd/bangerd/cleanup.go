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
	"banger/vmm"
	"banger/vmm/cgroup"
	"banger/vmm/dns"
	"banger/vmm/network"
	"banger/vmm/qemu"
)

// leftover is a thing that a daemon left on this host.
type leftover struct {
	text   string // for people, printable
	remove func() error
}

// cleaner finds the leftovers that a cleanup removes.
type cleaner struct {
	stateDir string
	instance string            // of stateDir; empty if it has none
	locked   bool              // a process holds the lock of stateDir
	all      bool              // of every state directory without a living daemon
	living   map[string]string // state directories of living daemons by instance
}

// runCleanup removes the leftovers of one state directory or, with all, of every one without a
// living daemon. It lists them and asks first. It continues after an error and returns all errors.
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
		locked, err := lock(state) // no daemon starts meanwhile
		if err == nil {
			defer locked.Close()
		} else if c.locked = true; !f.all {
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

// confirm asks the user at the terminal.
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

// livingDaemons returns the state directories of this user's daemons by instance. It finds them by
// their locks.
func livingDaemons() map[string]string {
	living := make(map[string]string)
	for _, l := range host.LockedFiles(lockFile) {
		if l.PID == os.Getpid() {
			continue
		}
		dir := filepath.Dir(l.Path)
		root := filepath.Join("/proc", strconv.Itoa(l.PID), "root") // the daemon may have its own
		if id, err := readInstance(filepath.Join(root, dir)); err == nil {
			living[id] = dir
		}
	}
	return living
}

// wants reports whether to remove the leftovers of an instance.
func (c *cleaner) wants(instance string) bool {
	_, lives := c.living[instance]
	own := instance != "" && instance == c.instance
	return !lives && (own && !c.locked || c.all && !own)
}

func (c *cleaner) find(f flags, root bool) ([]leftover, error) {
	found, err := c.machines("/proc")
	if err != nil {
		return nil, err
	}
	if err := f.complete(); err != nil {
		return nil, err
	}
	if root {
		removeNames := true
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
				found = append(found, leftover{printable.Sentence(l.Text), l.Remove})
			} else if l.Text == "link "+settings.Bridge {
				removeNames = false // another daemon has the bridge
			}
		}
		path, bridge := settings.HostsFile, settings.Bridge
		if removeNames && path != notServed && dns.HasHosts(path, bridge) {
			remove := func() error { return dns.WriteHosts(path, bridge, nil) }
			found = append(found, leftover{"names in " + path, remove})
		}
	}
	for _, l := range cgroup.Leftovers() {
		if c.wants(l.Instance) && allHere("/proc", l.Processes()) {
			found = append(found, leftover{printable.Sentence("cgroup " + l.Path), l.Remove})
		}
	}
	mounts, err := c.mounts(f.mount)
	return append(found, mounts...), err
}

// allHere reports whether none of the processes is of another host's daemon: a cleanup ends no QEMU
// there, see machines.
func allHere(proc string, pids []int) bool {
	sockets := unixSockets(proc)
	for _, pid := range pids {
		dir := filepath.Join(proc, strconv.Itoa(pid))
		if _, err := os.Stat(dir); err == nil && !isHere(proc, dir, sockets) {
			return false
		}
	}
	return true
}

// machines finds the QEMUs of daemons in this network namespace. Others are those of another host's
// daemon.
func (c *cleaner) machines(proc string) ([]leftover, error) {
	entries, err := os.ReadDir(proc)
	if err != nil {
		return nil, fmt.Errorf("cannot list the processes: %w", err)
	}
	sockets := unixSockets(proc)
	var found []leftover
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		dir := filepath.Join(proc, e.Name())
		stateDir, uuid := c.owner(dir)
		if stateDir == "" || !isHere(proc, dir, sockets) {
			continue
		}
		text := fmt.Sprintf("process %d, QEMU of the VM %s of %s", pid,
			printable.Escape(uuid), printable.Escape(stateDir))
		found = append(found, leftover{text, func() error { return c.endProcess(dir, pid) }})
	}
	return found, nil
}

// owner returns the state directory and the VM of a QEMU to end, and nothing for other processes.
func (c *cleaner) owner(dir string) (stateDir, uuid string) {
	b, err := os.ReadFile(filepath.Join(dir, "cmdline"))
	if err != nil || len(b) == 0 {
		return "", ""
	}
	stateDir, uuid = qemu.Owner(strings.Split(strings.TrimRight(string(b), "\x00"), "\x00"))
	// Any user may start a process that names a directory whose file system never answers.
	if stateDir == "" || !answers(func() bool { return c.abandoned(dir, stateDir, uuid) }) {
		return "", ""
	}
	return stateDir, uuid
}

// abandoned reports whether no daemon has the state directory of a process that a cleanup may end.
func (c *cleaner) abandoned(dir, stateDir, uuid string) bool {
	if sameDir(stateDir, c.stateDir) {
		return !c.locked
	}
	if !c.all {
		return false
	}
	// The path as the process sees it: it may have its own root directory. Where that is empty, the
	// file of its console shows that the path is the same here.
	root := filepath.Join(dir, "root")
	if _, err := os.Stat(filepath.Join(root, stateDir)); err != nil {
		if !hasConsole(dir, filepath.Join(stateDir, "vms", uuid, vmm.ConsoleFile)) {
			return false
		}
		root = ""
	}
	used, err := inUse(filepath.Join(root, stateDir))
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

// endProcess kills a process through a pidfd, so that it never hits another one with the same pid.
func (c *cleaner) endProcess(dir string, pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return ignoreGone(err)
	}
	defer unix.Close(fd)
	// From here on the pid cannot be reused.
	if stateDir, _ := c.owner(dir); stateDir == "" {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
		return ignoreGone(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; {
		left := int(max(0, time.Until(deadline).Milliseconds()))
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, left)
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

// mounts finds the mounts of banger that no daemon serves: the one at dir, or with all every one.
func (c *cleaner) mounts(dir string) ([]leftover, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("cannot list the mounts: %w", err)
	}
	var found []leftover
	for _, point := range fs.Mounts(b) {
		if (c.all || point == dir) && dead(point) {
			remove := func() error { return unmount(point) }
			found = append(found, leftover{"mount " + printable.Name(point), remove})
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

// dead reports whether no daemon serves a mount. It asks statfs: the kernel may cache attributes.
func dead(dir string) bool {
	return answers(func() bool {
		var st unix.Statfs_t
		return errors.Is(unix.Statfs(dir, &st), unix.ENOTCONN)
	})
}

// answerWait is how long a file system may need for an answer.
const answerWait = 2 * time.Second

// answers returns the result of f, or false after answerWait. The server of the file system that f
// asks may be stopped.
func answers(f func() bool) bool {
	answer := make(chan bool, 1)
	go func() { answer <- f() }() // ends with the answer, or with this process
	select {
	case yes := <-answer:
		return yes
	case <-time.After(answerWait):
		return false
	}
}
