package fs

import (
	"errors"
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
