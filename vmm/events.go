package vmm

import (
	"context"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// What an event says, the fourth word of its line.
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

// EventReader follows the events from where it was opened.
type EventReader interface {
	// Next gives the events since the last call, at least one and so many at
	// most, and how many were lost before them because the reader was too slow.
	// It blocks until there is one or ctx ends. At a removed VM's end it gives io.EOF.
	Next(ctx context.Context, most int) (events []Event, lost uint64, err error)
	// Ready reports whether Next would return without blocking.
	Ready() bool
}

// Events gives the events since the daemon started, at most the last EventHistory. They have no
// detail that is for readers of the VM only.
func (m *Manager) Events() []Event { return m.events.all() }

// Follow gives a reader of the events to come.
func (m *Manager) Follow() EventReader { return m.events.follow() }

// OnChange registers f to be called after each event was published, in order, from one goroutine
// of the Manager. When f was too slow for EventHistory events, missed is called in the place of those that it is not told of.
// Before Open's VMs are used.
func (m *Manager) OnChange(f func(Event), missed func()) {
	r := m.events.follow()
	m.spawn(func() {
		for {
			events, lost, err := r.Next(m.ctx, EventHistory)
			if err != nil {
				return
			}
			if lost > 0 {
				m.o.Log.Warn("watchers were not told of events", "lost", lost)
				missed()
			}
			for _, e := range events {
				f(e)
			}
		}
	})
}

// Events gives this VM's events, Follow a reader of those to come.
func (v *VM) Events() []Event     { return v.events.all() }
func (v *VM) Follow() EventReader { return v.events.follow() }

// openSeq finds the number of the last event of the daemon before. It is kept
// in the page cache only: it outlives the daemon's death, which is when readers
// go on counting, and costs no sync for each event.
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

// emit numbers an event and shows it to all who follow; v is nil for one of no VM.
func (m *Manager) emit(v *VM, name, what, detail string) {
	m.emitMu.Lock()
	defer m.emitMu.Unlock()
	m.seq++
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], m.seq)
	// 8 bytes into the page cache: no waiting for a disk, though under a lock.
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

// forAll is the event as everybody may see it. The VM's own readers get what its owner wrote and
// what its guest or its VMM printed.
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
