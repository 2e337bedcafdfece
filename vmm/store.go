package vmm

import (
	"context"
	"net/netip"
)

// Store keeps the records. Every method returns when its change is durable
// (on disk, synced); calls made at the same time may share one commit.
// A cancelled ctx ends the wait, not the write. Implemented by vmm/store.
type Store interface {
	// Load gives all records, for the start of the daemon.
	Load(ctx context.Context) ([]Record, error)
	// Insert adds a record, gives it its Serial and MAC. ErrExists if the name is taken.
	Insert(ctx context.Context, r *Record) error
	// Update writes all of r by its Serial. ErrExists if r.Name is another's.
	Update(ctx context.Context, r *Record) error
	// Delete forgets the record and frees its address.
	Delete(ctx context.Context, serial uint64) error
	// Lease gives the VM its address in prefix, the one it has already or the
	// lowest free one, never the network's, the gateway's or the broadcast address. ErrNoSpace if none is free.
	Lease(ctx context.Context, serial uint64, prefix netip.Prefix, gateway netip.Addr) (netip.Addr, error)

	// Snapshots gives all snapshots of all VMs, oldest first, for the start of the daemon.
	Snapshots(ctx context.Context) ([]DiskSnapshot, error)
	// AddSnapshot adds one and gives it its Number, which no other of the VM has. ErrNoSpace if there is none left.
	AddSnapshot(ctx context.Context, d *DiskSnapshot) error
	// UpdateSnapshot writes all of d by its Serial and Number.
	UpdateSnapshot(ctx context.Context, d *DiskSnapshot) error
	DeleteSnapshot(ctx context.Context, d *DiskSnapshot) error
	Close() error
}
