package main

import (
	"os/exec"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// starter starts programs and reaps them: the reaper as process 1, ownChildren as a service.
type starter interface {
	start(cmd *exec.Cmd) (*child, error)
}

// child is a process that the agent started, the leader of a process group.
type child struct {
	pid  int
	mu   *sync.Mutex   // held over reaping: until then the pid is its own
	done chan struct{} // closed when it has ended; status is valid then

	status unix.WaitStatus
}

func (c *child) endLocked(status unix.WaitStatus) {
	c.status = status
	close(c.done)
}

// signal sends it to the child's process group, unless the child has ended.
func (c *child) signal(s unix.Signal) {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.done:
	default:
		unix.Kill(-c.pid, s)
	}
}

// ownChildren reaps the processes that it started and no others.
type ownChildren struct{}

func (ownChildren) start(cmd *exec.Cmd) (*child, error) {
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	c := &child{pid: cmd.Process.Pid, mu: new(sync.Mutex), done: make(chan struct{})}
	go func() { // ends with the process
		// It waits first and reaps under the lock, so that no signal reaches a reused pid.
		for unix.Waitid(unix.P_PID, c.pid, nil, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		state, _ := cmd.Process.Wait() // it has ended and nobody else waits for it
		status, _ := state.Sys().(syscall.WaitStatus)
		c.endLocked(unix.WaitStatus(status))
	}()
	return c, nil
}
