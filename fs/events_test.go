package fs

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"banger/vmm"
)

// burst is an EventReader that has all its events. Each Next returns n.
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
		events = append(events, vmm.Event{
			Time: time.Unix(1, 0), Seq: b.seq, VM: "web", What: vmm.EventConfig, Detail: "cpus 1",
		})
	}
	return events, 0, nil
}

// A reader that follows `events` reads every line once, whatever was dropped before, and the file
// never shrinks.
func TestEventsDropped(t *testing.T) {
	b := &burst{n: 4096}
	text := &eventText{next: b}
	reader := &growingFile{text: text}
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
		t.Errorf("the reader got %d bytes, want %d, or the bytes differ", len(got), len(want))
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
		{"a new reader", 0, kept[:100]},
		{"seek to the end", size - 100, kept[len(kept)-100:]},
		{"seek to dropped bytes", dropped - 10, make([]byte, 10)},
		{"rewind", 0, kept[:100]},
	} {
		p, err := reader.read(nil, make([]byte, 100), c.off)
		if err != nil || !bytes.Equal(p, c.want) {
			t.Errorf("%s: got %q, %v, want %q", c.name, p, err, c.want)
		}
	}
}

// The size in stat(2) is the length of the text, whatever lines were added and dropped since the
// last stat(2).
func TestEventSizes(t *testing.T) {
	sizes := eventSizes{size: make(map[uint64]*eventSize)}
	var events []vmm.Event
	seq := uint64(0)
	for round, step := range []struct{ added, dropped int }{
		{0, 0}, {3, 0}, {0, 0}, {5, 2}, {0, 6}, {10, 0}, {1, 11}, {40, 20},
	} {
		for range step.added {
			seq += 1 + seq%3 // the events of one VM have gaps
			events = append(events, vmm.Event{
				Time: time.Unix(1, 0), Seq: seq, VM: "web", What: vmm.EventError,
				Detail: "x\x1b" + strings.Repeat("y", int(seq)),
			})
		}
		events = events[step.dropped:]
		if got, want := sizes.of(7, events), int64(len(appendEvents(nil, events))); got != want {
			t.Errorf("round %d: %d bytes, not %d", round, got, want)
		}
	}
}
