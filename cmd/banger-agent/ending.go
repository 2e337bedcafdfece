package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"os"
	"strings"
	"sync"
	"time"

	"banger/vmm/guest"

	"golang.org/x/sys/unix"
)

// A guest waits so long for a host that collects how its program ended, before it powers itself
// off. One that could not begin waits longer: a slow host that misses it would take it for a good
// end.
const (
	holdWait   = 5 * time.Second
	failedWait = 30 * time.Second
)

// ending is how the program of the image ended, or why it could not begin. The host collects it.
type ending struct {
	known     chan struct{} // closed once end is valid
	end       guest.End
	once      sync.Once
	collected chan struct{} // closed when the host has it
}

func newEnding() *ending {
	return &ending{known: make(chan struct{}), collected: make(chan struct{})}
}

// set is called once.
func (e *ending) set(end guest.End) {
	e.end = end
	close(e.known)
}

// handler serves guest.EndStream.
func (e *ending) handler() guest.StreamHandler {
	await := func() guest.End {
		<-e.known
		return e.end
	}
	return guest.EndHandler(await, func() { e.once.Do(func() { close(e.collected) }) })
}

// hold returns when the host knows the end, or after some time, because no daemon may run. It
// returns at once if there is nothing to know.
func (e *ending) hold() {
	if e == nil {
		return
	}
	select {
	case <-e.known:
	default:
		return
	}
	wait := holdWait
	if e.end.Error != "" {
		wait = failedWait
	}
	select {
	case <-e.collected:
	case <-time.After(wait):
		log.Print("no host asks how the program ended")
	}
}

// Statuses of programs that could not begin, as docker-run(1) has them.
const (
	statusNotReady = 125 // something around it
	statusNoExec   = 126
	statusNotFound = 127
)

// noProgram is the error of a program that is not there or cannot be executed.
type noProgram struct {
	status int
	error
}

// endOf returns the end of a program that ended with that status, or could not begin.
func endOf(status unix.WaitStatus, err error) guest.End {
	var no *noProgram
	switch {
	case errors.As(err, &no):
		return guest.End{Status: guest.ExecStatus{Code: no.status}, Error: err.Error()}
	case err != nil:
		return guest.End{Status: guest.ExecStatus{Code: statusNotReady}, Error: err.Error()}
	case status.Signaled():
		return guest.End{Status: guest.ExecStatus{Signal: int(status.Signal())}}
	}
	return guest.End{Status: guest.ExecStatus{Code: status.ExitStatus()}}
}

// notFound explains an error of lookPath.
func notFound(err error) error {
	if errors.Is(err, guest.ErrAccess) {
		return &noProgram{statusNoExec, err}
	}
	return &noProgram{statusNotFound, err}
}

// notBegun explains an error of execve(2) for a program that lookPath has found.
func notBegun(path string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return &noProgram{statusNotFound, fmt.Errorf("cannot start %.128q: %s is not in the guest",
			path, interpreterOf(path))}
	case errors.Is(err, unix.ENOEXEC):
		return &noProgram{statusNoExec, fmt.Errorf("cannot start %.128q: it is of another "+
			"architecture, or no program: %w", path, unix.ENOEXEC)}
	}
	return &noProgram{statusNoExec, fmt.Errorf("cannot start %.128q: %w", path, err)}
}

// interpreterOf names the program that runs a program: that of its first line, if it is a script.
func interpreterOf(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return "it or its loader"
	}
	defer f.Close()
	head := make([]byte, 256) // as much as execve(2) reads
	n, _ := f.Read(head)
	line, _, _ := bytes.Cut(head[:n], []byte("\n"))
	if text, ok := strings.CutPrefix(string(line), "#!"); ok {
		if words := strings.Fields(text); len(words) > 0 {
			return fmt.Sprintf("its interpreter %.128q", words[0])
		}
	}
	return "its loader"
}
