package main

import (
	"log"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// limits are those of setrlimit(2) that every program in the guest begins with, as in docker's
// containers: dockerd's unit lifts the bound of processes, and systemd gives 1024 open files, which
// a program may raise. The bound of open files is what docker's has been, the kernel's largest.
var limits = []struct {
	which int
	limit unix.Rlimit
}{
	{unix.RLIMIT_NPROC, unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}},
	{unix.RLIMIT_NOFILE, unix.Rlimit{Cur: 1024, Max: 1 << 20}},
}

// maxFiles is how many files the guest may have open: no bound, as systemd sets it. The kernel's
// own default is one for each 10 KiB of memory (fs/file_table.c).
const maxFiles = 1<<63 - 1

// setLimits sets the limits of this process and of all that it starts. It then executes the agent
// anew: Go raises its own limit of open files at the start only, and its children get the one that
// it found. setLimits returns when the limits are set, or when the kernel refuses them.
func setLimits() {
	for _, l := range limits {
		var now unix.Rlimit
		if unix.Getrlimit(l.which, &now) != nil || now.Max == l.limit.Max {
			continue
		}
		if err := unix.Setrlimit(l.which, &l.limit); err != nil {
			log.Printf("cannot set limit %d: %v", l.which, err)
			continue
		}
		if l.which == unix.RLIMIT_NOFILE {
			self, err := os.Executable()
			if os.Getpid() == 1 {
				self, err = os.Args[0], nil // /proc is not there yet
			}
			if err == nil {
				err = unix.Exec(self, os.Args, os.Environ())
			}
			log.Printf("cannot execute the agent again: %v", err) // few files can be open then
		}
	}
}

// liftMaxFiles lifts the guest's bound of open files.
func liftMaxFiles() {
	err := os.WriteFile("/proc/sys/fs/file-max", []byte(strconv.Itoa(maxFiles)), 0o644)
	if err != nil {
		log.Printf("cannot lift the number of open files: %v", err)
	}
}
