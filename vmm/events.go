package vmm

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// The kinds of events, which are the fourth word of a line.
const (
	EventCreate = "create"
	EventRemove = "remove"
	EventRename = "rename"
	EventState  = "state"
	EventHealth = "health"
	EventConfig = "config"
	EventError  = "error"
	EventExit   = "exit"
	EventOOM    = "oom"
	EventPanic  = "panic"
	EventReboot = "reboot" // empty, or when the VM starts again: `in 4s`

	EventSnapshot = "snapshot" // take, remove or restore NAME, or reset
	EventImage    = "image"    // of an image, not of a VM
)

// Event is one line of `events`.
type Event struct {
	Time   time.Time
	Seq    uint64 // without gaps, goes on across restarts of the daemon
	Serial uint64 // the VM's, 0 for an image's event
	VM     string // its name then, or the image's
	What   string
	Detail string // one line, not yet escaped
}

// EventHistory is how many events are kept, for all VMs together and for each.
const EventHistory = 4096

// EventReader follows the events from its opening on. One goroutine at a time uses it.
type EventReader interface {
	// Next returns the events since the last call, at least one and at most that many, and how many
	// were lost before them because the reader was too slow. It blocks until there is one or ctx
	// ends. After the last event of a removed VM it returns io.EOF.
	Next(ctx context.Context, most int) (events []Event, lost uint64, err error)
	// Ready reports whether Next would return without blocking.
	Ready() bool
}

// Events returns the events since the daemon's start, at most the last EventHistory. They lack the
// details for readers of the VM only.
func (m *Manager) Events() []Event { return m.events.all() }

// Follow returns a reader of later events.
func (m *Manager) Follow() EventReader { return m.events.follow() }

// OnChange has f called after each event, in order, by one goroutine of the Manager. When f is too
// slow for EventHistory events, missed is called instead of f for the lost ones.
func (m *Manager) OnChange(f func(Event), missed func()) {
	r := m.events.follow()
	m.spawn(func() {
		for {
			events, lost, err := r.Next(m.ctx, EventHistory)
			if err != nil {
				return
			}
			if lost > 0 {
				m.o.Log.Warn("watchers have lost events", "lost", lost)
				missed()
			}
			for _, e := range events {
				f(e)
			}
		}
	})
}

// Events returns this VM's events, at most the last EventHistory.
func (v *VM) Events() []Event { return v.events.all() }

// Follow returns a reader of this VM's later events.
func (v *VM) Follow() EventReader { return v.events.follow() }

// openSeq reads the number of the last event of the last daemon. The number is in the page cache
// only: it survives the daemon, as its readers do, and costs no sync for each event.
func (m *Manager) openSeq() error {
	f, err := os.OpenFile(filepath.Join(m.o.StateDir, "seq"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	var b [8]byte
	if n, _ := f.ReadAt(b[:], 0); n == len(b) {
		m.seq = binary.LittleEndian.Uint64(b[:])
	}
	m.seqF = f
	return nil
}

// emit numbers an event and adds it to the logs. v is nil for an event of no VM.
func (m *Manager) emit(v *VM, name, what, detail string) {
	m.emitMu.Lock()
	defer m.emitMu.Unlock()
	m.seq++
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], m.seq)
	// 8 bytes into the page cache wait for no disk, though under a lock.
	if _, err := m.seqF.WriteAt(b[:], 0); err != nil && !errors.Is(err, fs.ErrClosed) {
		m.o.Log.Error("cannot keep the number of the last event", "err", err)
	}
	e := Event{Time: time.Now(), Seq: m.seq, VM: name, What: what, Detail: detail}
	if v != nil {
		e.Serial = v.serial
		v.events.add(e)
	}
	m.events.add(e.forAll())
}

// forAll returns the event as everybody may see it: without the text that the owner wrote, or that
// the guest or its VMM printed.
func (e Event) forAll() Event {
	switch e.What {
	case EventError, EventPanic, EventOOM:
		e.Detail = ""
	case EventSnapshot:
		e.Detail, _, _ = strings.Cut(e.Detail, " ") // without the name
	case EventExit:
		e.Detail, _, _ = strings.Cut(e.Detail, ":") // the status, without the reason
	}
	return e
}

func (v *VM) emit(what, detail string) {
	v.m.emit(v, v.Snapshot().Name, what, detail)
}

// eventLog keeps the last EventHistory events and wakes its readers.
type eventLog struct {
	mu     sync.Mutex
	events []Event
	next   uint64        // the number of the next event
	wake   chan struct{} // closed at the next event, nil while nobody waits
	ended  bool
}

func (l *eventLog) add(e Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.events) >= 2*EventHistory {
		l.events = append(l.events[:0:0], l.events[len(l.events)-EventHistory+1:]...)
	}
	l.events = append(l.events, e)
	l.next++
	l.rouse()
}

// end lets readers return io.EOF after the last event.
func (l *eventLog) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
	l.rouse()
}

func (l *eventLog) rouse() {
	if l.wake != nil {
		close(l.wake)
		l.wake = nil
	}
}

func (l *eventLog) kept() []Event {
	return l.events[max(0, len(l.events)-EventHistory):]
}

func (l *eventLog) all() []Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.kept())
}

func (l *eventLog) follow() *eventReader {
	l.mu.Lock()
	defer l.mu.Unlock()
	return &eventReader{l, l.next}
}

// eventReader implements EventReader.
type eventReader struct {
	log  *eventLog
	next uint64 // the number of the next event to return; guarded by log.mu
}

func (r *eventReader) Ready() bool {
	r.log.mu.Lock()
	defer r.log.mu.Unlock()
	return r.next < r.log.next || r.log.ended
}

func (r *eventReader) Next(ctx context.Context, most int) ([]Event, uint64, error) {
	for {
		events, lost, wake := r.poll(most)
		if events != nil {
			return events, lost, nil
		}
		if wake == nil {
			return nil, 0, io.EOF
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return nil, 0, ctx.Err()
		}
	}
}

// poll returns at most that many events, or the channel to wait for, or neither after the last
// event.
func (r *eventReader) poll(most int) (events []Event, lost uint64, wake <-chan struct{}) {
	l := r.log
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := l.next - r.next; n > 0 {
		kept := l.kept()
		if have := uint64(len(kept)); n > have {
			lost, n = n-have, have
		}
		events := kept[uint64(len(kept))-n:]
		events = events[:min(len(events), most)]
		r.next = l.next - n + uint64(len(events))
		return slices.Clone(events), lost, nil
	}
	if l.ended {
		return nil, 0, nil
	}
	if l.wake == nil {
		l.wake = make(chan struct{})
	}
	return nil, 0, l.wake
}
