package vmm

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"
)

const alice, bob, carol, dave = 1001, 1002, 1003, 1004

// One user's builds leave slots for others, and a waiter gets the next slot that it may have.
func TestSlots(t *testing.T) {
	slots := NewSlots(4, 2, 2)
	for _, c := range []struct {
		uid  uint32
		want bool
	}{{alice, true}, {alice, true}, {alice, false}, {bob, true}, {bob, false}, {carol, true}, {dave, false}} {
		if got := slots.Try(c.uid); got != c.want {
			t.Errorf("uid %d: %v", c.uid, got)
		}
	}
	ctx := context.Background()
	waits := func(uid uint32) chan error {
		done, before := make(chan error, 1), len(slots.queue)
		go func() { done <- slots.Wait(ctx, uid) }()
		for {
			slots.mu.Lock()
			queued := len(slots.queue) > before
			slots.mu.Unlock()
			if queued {
				return done
			}
		}
	}
	second, first := waits(alice), waits(dave)
	slots.End(bob)
	if err := <-first; err != nil {
		t.Error(err)
	}
	slots.End(alice)
	slots.End(carol)
	slots.End(dave)
	if err := <-second; err != nil {
		t.Error(err)
	}
	if slots.used != 2 || slots.held[alice] != 2 || len(slots.held) != 1 {
		t.Errorf("%d are used, held are %v", slots.used, slots.held)
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if err := slots.Wait(ended, alice); !errors.Is(err, context.Canceled) || len(slots.queue) != 0 {
		t.Errorf("error %v, %d wait", err, len(slots.queue))
	}
}

// Two jobs at once have two uids, and a job's uid is given to nobody before its processes are gone.
func TestJobs(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("run as root")
	}
	jobs := NewJobs(1<<30 + 4096)
	one, err := jobs.Begin()
	if err != nil {
		t.Fatal(err)
	}
	two, err := jobs.Begin()
	if err != nil || one.UID == two.UID || one.UID < 1<<30+4096-JobUIDs || two.UID >= 1<<30+4096 {
		t.Fatalf("uids %+v %+v, error %v", one, two, err)
	}
	// Another daemon of the host, with the same uids, has neither.
	other, err := NewJobs(1<<30 + 4096).Begin()
	if err != nil || other.UID == one.UID || other.UID == two.UID {
		t.Fatalf("uid of another daemon: %+v, error %v", other, err)
	}
	// It leaves its session and its parent, as a program that was taken over does.
	cmd := exec.Command("sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & setsid sleep 1000 >/dev/null 2>&1 &")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(one.UID), Gid: uint32(one.UID)}}
	cmd.Dir = "/"
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := one.End(); err != nil {
		t.Fatal(err)
	}
	// pgrep exits with 1 when it finds none.
	if out, err := exec.Command("pgrep", "-r", "RSDT", "-U", strconv.Itoa(one.UID)).CombinedOutput(); err == nil {
		t.Errorf("processes of the job go on: %s", out)
	}
	again, err := NewJobs(1<<30 + 4096).Begin()
	if err != nil || again.UID != one.UID {
		t.Errorf("the uid that was given back: %+v, error %v", again, err)
	}
	if err := errors.Join(two.End(), other.End(), again.End()); err != nil {
		t.Fatal(err)
	}
	none, err := NewJobs(0).Begin()
	if err != nil || none.UID != -1 || none.End() != nil {
		t.Errorf("without uids of VMs: %+v, %v", none, err)
	}
}
