package vmm

import (
	"context"
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
	// Next gives the events since the last call, at least one, and how many
	// were lost before them because the reader was too slow. It blocks until
	// there is one or ctx ends. At a removed VM's end it gives io.EOF.
	Next(ctx context.Context) (events []Event, lost uint64, err error)
	// Ready reports whether Next would return without blocking.
	Ready() bool
}
