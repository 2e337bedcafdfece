package fs

import (
	"errors"
	"runtime"
	"testing"
	"time"

	"banger/vmm"
)

func TestParseSize(t *testing.T) {
	for text, ok := range map[string]bool{"80x24": true, "1x1": true, "65535x65535": true, "": false, "80": false, "0x1": false, "80x": false, "80x24x1": false, "65536x1": false, "-1x1": false} {
		if cols, rows, err := parseSize(text); (err == nil) != ok || ok == (cols == 0 || rows == 0) {
			t.Errorf("%q: %d %d %v", text, cols, rows, err)
		}
	}
	if _, _, err := parseSize("x"); !errors.Is(err, vmm.ErrInvalid) {
		t.Error(err)
	}
}

// TestSessionEnds finds a session that nobody has open ended after a while, not before, and once.
func TestSessionEnds(t *testing.T) {
	all := newSessions(20 * time.Millisecond)
	ends := make(chan struct{}, 2)
	s, err := all.add(new(vmm.VM), 1000, 1000)
	if err != nil {
		t.Fatal(err)
	}
	s.unused = func() { ends <- struct{}{} }
	if all.get(s.serial) != s || all.find(s.vm, s.number) != s || s.number != 1 {
		t.Error("it is not found")
	}
	if !s.hold() {
		t.Error("it cannot be held")
	}
	s.release()
	s.release()
	if !s.hold() {
		t.Error("it ended at once")
	}
	time.AfterFunc(60*time.Millisecond, s.release)
	<-s.over
	<-ends
	if s.hold() {
		t.Error("it is held after its end")
	}
	s.release()
	s.close()
	if len(ends) > 0 || len(all.open)+len(all.ofVM) > 0 {
		t.Error("it ended twice, or is still known")
	}
	next, err := all.add(s.vm, 1000, 1000)
	if err != nil || next.number != 2 {
		t.Errorf("the next has a number that the kernel may still know: %v %v", next, err)
	}
	next.unused = func() {}
	all.closeAll()
}

// TestSessionHeldAtItsEnd finds a session alive whose file was opened when its time was over.
func TestSessionHeldAtItsEnd(t *testing.T) {
	for range 200 {
		all := newSessions(time.Hour)
		s, err := all.add(new(vmm.VM), 1000, 1000)
		if err != nil {
			t.Fatal(err)
		}
		s.unused = func() {}
		all.mu.Lock() // the end of a session needs it
		s.release()
		expired := make(chan struct{})
		go func() {
			defer close(expired)
			s.expire(1)
		}()
		for range 100 {
			runtime.Gosched() // it waits for the lock meanwhile
		}
		held := s.hold()
		all.mu.Unlock()
		<-expired
		if s.mu.Lock(); held && s.closed {
			t.Fatal("a session ended that a file of it keeps alive")
		}
		s.mu.Unlock()
		s.close()
	}
}

// TestSessionLate finds a session that was opened and closed again to last its whole time, though
// the timer of its earlier release had fired.
func TestSessionLate(t *testing.T) {
	all := newSessions(time.Hour)
	s, err := all.add(new(vmm.VM), 1000, 1000)
	if err != nil {
		t.Fatal(err)
	}
	s.unused = func() {}
	s.release()
	if !s.hold() {
		t.Fatal("it ended at once")
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
