package fs

import (
	"bytes"
	"context"
	"testing"
	"time"

	"banger/vmm"
)

// burst is an EventReader of events that are all there; n more are given by each Next.
type burst struct {
	left, n int
	seq     uint64
}

func (b *burst) Ready() bool { return b.left > 0 }

func (b *burst) Next(context.Context, int) ([]vmm.Event, uint64, error) {
	var events []vmm.Event
	for range min(b.n, b.left) {
		b.seq++
		b.left--
		events = append(events, vmm.Event{Time: time.Unix(1, 0), Seq: b.seq, VM: "web", What: vmm.EventConfig, Detail: "cpus 1"})
	}
	return events, 0, nil
}

// One who follows `events` gets every line once however much is dropped behind them, and the file
// never shrinks.
func TestEventsAreDroppedBehindTheirReader(t *testing.T) {
	b := &burst{n: 4096}
	text := &eventText{next: b}
	reader := &eventFile{text: text}
	var off, size int64
	var got []byte
	for range 100 {
		b.left = b.n
		for {
			p, err := reader.read(nil, make([]byte, 64<<10), off)
			if err != nil {
				t.Fatal(err)
			}
			if len(p) == 0 {
				break
			}
			off += int64(len(p))
			got = append(got, p...)
		}
		kept, dropped := text.now()
		if now := dropped + int64(len(kept)); now < size {
			t.Fatalf("the size shrinks from %d to %d", size, now)
		} else {
			size = now
		}
		if len(kept) > maxEventText {
			t.Fatalf("%d bytes are kept", len(kept))
		}
	}
	var want []byte
	all := &burst{n: 100 * b.n, left: 100 * b.n}
	events, _, _ := all.Next(context.Background(), 0)
	if want = appendEvents(want, events); !bytes.Equal(got, want) {
		t.Errorf("the reader got %d bytes, want %d, or others", len(got), len(want))
	}
	kept, dropped := text.now()
	if dropped == 0 || size != int64(len(want)) {
		t.Fatalf("dropped %d, size %d, want %d", dropped, size, len(want))
	}
	for _, c := range []struct {
		name string
		off  int64
		want []byte
	}{
		{"one who comes", 0, kept[:100]},
		{"one who seeks to the end", size - 100, kept[len(kept)-100:]},
		{"one who seeks to what was dropped", dropped - 10, make([]byte, 10)},
		{"one who rewinds", 0, kept[:100]},
	} {
		if p, err := reader.read(nil, make([]byte, 100), c.off); err != nil || !bytes.Equal(p, c.want) {
			t.Errorf("%s: got %q, %v, want %q", c.name, p, err, c.want)
		}
	}
}

// The length that stat(2) tells is that of the text, however many lines came and went since it was
// last told.
func TestEventSizes(t *testing.T) {
	sizes := eventSizes{size: make(map[uint64]*eventSize)}
	var events []vmm.Event
	seq := uint64(0)
	for round, step := range []struct{ come, left int }{{0, 0}, {3, 0}, {0, 0}, {5, 2}, {0, 6}, {10, 0}, {1, 11}, {40, 20}} {
		for range step.come {
			seq += 1 + seq%3 // those of one VM have gaps
			events = append(events, vmm.Event{Time: time.Unix(1, 0), Seq: seq, VM: "web", What: vmm.EventError, Detail: "x\x1b" + string(bytes.Repeat([]byte("y"), int(seq)))})
		}
		events = events[step.left:]
		if got, want := sizes.of(7, events), int64(len(appendEvents(nil, events))); got != want {
			t.Errorf("round %d: %d bytes, not %d", round, got, want)
		}
	}
}
