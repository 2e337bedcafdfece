package vmm

import (
	"context"
	"testing"
)

// Events are read a few at a time, before and after some were lost.
func TestEventsInParts(t *testing.T) {
	var l eventLog
	r := l.follow()
	seq, lost := uint64(0), uint64(0)
	read := func(most int) {
		t.Helper()
		events, missed, err := r.Next(context.Background(), most)
		if err != nil || len(events) == 0 || len(events) > most {
			t.Fatalf("%d events of %d, %v", len(events), most, err)
		}
		lost += missed
		for _, e := range events {
			if seq += 1; e.Seq != seq+lost {
				t.Fatalf("event %d after %d and %d lost", e.Seq, seq-1, lost)
			}
		}
	}
	for i := range uint64(10) {
		l.add(Event{Seq: i + 1})
	}
	for _, most := range []int{1, 3, 100} {
		read(most)
	}
	if r.Ready() || seq != 10 {
		t.Errorf("after %d events: ready %v", seq, r.Ready())
	}
	for i := range uint64(EventHistory + 5) {
		l.add(Event{Seq: i + 11})
	}
	for r.Ready() {
		read(1000)
	}
	if lost != 5 || seq != 10+EventHistory {
		t.Errorf("%d lost, %d read", lost, seq)
	}
}

// Everybody's events lack the texts of owners, guests and VMMs.
func TestEventsForAll(t *testing.T) {
	for what, details := range map[string][2]string{
		EventError:    {"cannot write: secret", ""},
		EventPanic:    {"Kernel panic: secret", ""},
		EventOOM:      {"secret", ""},
		EventExit:     {"exited 1: the VMM ended with status 1: secret", "exited 1"},
		EventSnapshot: {"take secret", "take"},
		EventState:    {"running", "running"},
		EventConfig:   {"cpus memory", "cpus memory"},
	} {
		if got := (Event{What: what, Detail: details[0]}).forAll().Detail; got != details[1] {
			t.Errorf("%s: %q, not %q", what, got, details[1])
		}
	}
}
