package vmm

import (
	"context"
	"net/netip"
)

// Store keeps the records. Every method returns when its change is durable (on disk, synced). Calls
// at the same time may share one commit. The end of ctx ends the wait, not the write. Implemented
// by vmm/store.
type Store interface {
	// Load returns all records, for the start of the daemon.
	Load(ctx context.Context) ([]Record, error)
	// Insert adds a record and sets its Serial and MAC. ErrExists if another has the name.
	Insert(ctx context.Context, r *Record) error
	// Update writes all of r by its Serial. ErrExists if another has the name.
	Update(ctx context.Context, r *Record) error
	// Delete deletes the record and frees its address.
	Delete(ctx context.Context, serial uint64) error
	// Lease returns the VM's address in prefix: the one that it has, or the lowest free one. That
	// is never the network's, the gateway's or the broadcast address. ErrNoSpace if none is free.
	Lease(ctx context.Context, serial uint64, prefix netip.Prefix, gateway netip.Addr,
	) (netip.Addr, error)

	// Snapshots returns all snapshots of all VMs, oldest first, for the start of the daemon.
	Snapshots(ctx context.Context) ([]DiskSnapshot, error)
	// AddSnapshot adds a snapshot and sets its Number, which no other of the VM has. ErrNoSpace if
	// no number is left.
	AddSnapshot(ctx context.Context, d *DiskSnapshot) error
	// UpdateSnapshot and DeleteSnapshot find the snapshot by its Serial and Number.
	UpdateSnapshot(ctx context.Context, d *DiskSnapshot) error
	DeleteSnapshot(ctx context.Context, d *DiskSnapshot) error
	Close() error
}
