package fs

import (
	"errors"
	"runtime"
	"testing"
	"time"

	"banger/vmm"
)

func TestParseSize(t *testing.T) {
	for _, text := range []string{"80x24", "1x1", "65535x65535"} {
		if cols, rows, err := parseSize(text); err != nil || cols == 0 || rows == 0 {
			t.Errorf("%q: %d %d %v", text, cols, rows, err)
		}
	}
	for _, text := range []string{"", "x", "80", "0x1", "80x", "80x24x1", "65536x1", "-1x1"} {
		if _, _, err := parseSize(text); !errors.Is(err, vmm.ErrInvalid) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// TestSessionEnds expects that a session without open files ends once, after a while.
func TestSessionEnds(t *testing.T) {
	all := newSessions(20 * time.Millisecond)
	ends := make(chan struct{}, 2)
	s, err := all.add(new(vmm.VM), 1000, 1000)
	if err != nil {
		t.Fatal(err)
	}
	s.unused = func() { ends <- struct{}{} }
	if all.get(s.serial) != s || all.find(s.vm, s.number) != s || s.number != 1 {
		t.Error("the session is not found")
	}
	if !s.hold() {
		t.Error("the session cannot be held")
	}
	s.release()
	s.release()
	if !s.hold() {
		t.Error("the session ended at once")
	}
	time.AfterFunc(60*time.Millisecond, s.release)
	<-s.over
	<-ends
	if s.hold() {
		t.Error("the session was held after its end")
	}
	s.release()
	s.close()
	if len(ends) > 0 || len(all.open)+len(all.ofVM) > 0 {
		t.Error("the session ended twice, or is still known")
	}
	next, err := all.add(s.vm, 1000, 1000)
	if err != nil || next.number != 2 {
		t.Errorf("the kernel may still know the next number: %v %v", next, err)
	}
	next.unused = func() {}
	all.closeAll()
}

// TestSessionHeldAtItsEnd expects that a session lives on if a file of it is opened as it expires.
func TestSessionHeldAtItsEnd(t *testing.T) {
	for range 200 {
		all := newSessions(time.Hour)
		s, err := all.add(new(vmm.VM), 1000, 1000)
		if err != nil {
			t.Fatal(err)
		}
		s.unused = func() {}
		all.mu.Lock() // which the end of a session needs
		s.release()
		expired := make(chan struct{})
		go func() {
			defer close(expired)
			s.expire(1)
		}()
		for range 100 {
			runtime.Gosched() // until expire waits for the lock
		}
		held := s.hold()
		all.mu.Unlock()
		<-expired
		if s.mu.Lock(); held && s.closed {
			t.Fatal("a session with an open file ended")
		}
		s.mu.Unlock()
		s.close()
	}
}

// TestSessionLate expects that a session whose file was opened and closed again lasts its whole
// time, though the timer of the earlier release had fired.
func TestSessionLate(t *testing.T) {
	all := newSessions(time.Hour)
	s, err := all.add(new(vmm.VM), 1000, 1000)
	if err != nil {
		t.Fatal(err)
	}
	s.unused = func() {}
	s.release()
	if !s.hold() {
		t.Fatal("the session ended at once")
	}
	s.release()
	s.expire(1)
	if !s.hold() {
		t.Error("the timer of an earlier release ended it")
	}
	s.release()
	s.expire(s.releases)
	if s.hold() {
		t.Error("the timer of its last release did not end it")
	}
}
