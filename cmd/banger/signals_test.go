package main

import (
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestInterrupts sends signals to banger while a command runs in a guest.
func TestInterrupts(t *testing.T) {
	for _, x := range []struct {
		name    string
		answer  error // of the guest, to each signal
		silent  bool
		signals []syscall.Signal
		code    int // 0: the wait goes on
		text    string
	}{
		{"answered", nil, false, []syscall.Signal{syscall.SIGTERM}, 0, ""},
		{"the command has ended", syscall.EIO, false, []syscall.Signal{syscall.SIGTERM}, 0, ""},
		{"twice at once", nil, false, []syscall.Signal{syscall.SIGTERM, syscall.SIGTERM}, 0, ""},
		{"no ends", nil, false, []syscall.Signal{syscall.SIGUSR1, syscall.SIGUSR1, syscall.SIGWINCH}, 0, ""},
		{"another", nil, false, []syscall.Signal{syscall.SIGINT, syscall.SIGTERM}, 143, "a second signal, TERM"},
		{"another, silent", nil, true, []syscall.Signal{syscall.SIGTERM, syscall.SIGINT}, 130, "a second signal, INT"},
		{"the daemon waited", syscall.ETIMEDOUT, false, []syscall.Signal{syscall.SIGINT}, 130, "web did not answer to INT"},
		{"silent", nil, true, []syscall.Signal{syscall.SIGTERM}, 143, "web did not answer to TERM within 3s"},
	} {
		t.Run(x.name, func(t *testing.T) {
			t.Parallel()
			passed := make(chan syscall.Signal, 8)
			signals := catchSignals("web", 0, func(sig syscall.Signal) error {
				passed <- sig
				if x.silent {
					<-t.Context().Done()
				}
				return x.answer
			})
			defer signals.stop()
			for _, sig := range x.signals {
				signals.caught <- sig
			}
			close(signals.running)
			err := signals.during(func() error {
				if x.code != 0 {
					<-t.Context().Done()
				}
				<-passed
				time.Sleep(2 * repeatWait) // a signal too many would have ended it
				return nil
			})
			if code := exitCode(err); code != x.code {
				t.Fatalf("it ends with %d, %v, not with %d", code, err, x.code)
			}
			if x.code != 0 && (!wasInterrupted(err) || !strings.Contains(err.Error(), x.text)) {
				t.Errorf("it says %q, not %q", err, x.text)
			}
		})
	}
}
