package host

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"time"
)

// leastJobUID keeps EndProcesses away from the host's own users.
const leastJobUID = 1000

// PIDs lists the processes of this host that this process may see.
func PIDs() ([]int, error) {
	proc, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer proc.Close()
	names, err := proc.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil && pid > 0 {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// EndProcesses kills all processes of a uid and returns when there are none. It fails when some are
// left after that time.
func EndProcesses(uid int, within time.Duration) error {
	if uid < leastJobUID {
		return fmt.Errorf("uid %d is one of the host's own", uid)
	}
	for end := time.Now().Add(within); ; time.Sleep(10 * time.Millisecond) {
		left, err := killAll(uid)
		if err != nil || left == 0 {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("%d processes of uid %d do not end", left, uid)
		}
	}
}

// killAll sends SIGKILL to the processes of a uid and returns how many there were.
func killAll(uid int) (int, error) {
	pids, err := PIDs()
	if err != nil {
		return 0, err
	}
	count := 0
	for _, pid := range pids {
		if !hasUID(pid, uid) {
			continue
		}
		count++
		p, err := os.FindProcess(pid) // a pidfd: from here on the number means this process
		if err != nil {
			continue
		}
		if hasUID(pid, uid) {
			_ = p.Kill() // it may have ended
		}
		_ = p.Release()
	}
	return count, nil
}

// hasUID reads /proc/PID/status: the owner of /proc/PID is root's where a process is not dumpable.
// A zombie, which the kernel keeps for its parent only, counts as gone.
func hasUID(pid, uid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil || bytes.Contains(text, []byte("\nState:\tZ")) {
		return false
	}
	_, rest, _ := bytes.Cut(text, []byte("\nUid:"))
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	for word := range bytes.FieldsSeq(line) {
		if string(word) == strconv.Itoa(uid) {
			return true
		}
	}
	return false
}
