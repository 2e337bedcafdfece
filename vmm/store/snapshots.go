package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	"banger/vmm"
)

// numbers is the count of snapshot numbers of one VM; after the last, the first is used again.
const numbers = 1<<16 - 1

// Snapshots implements vmm.Store.
func (s *Store) Snapshots(ctx context.Context) ([]vmm.DiskSnapshot, error) {
	var got []vmm.DiskSnapshot
	if err := s.do(ctx, func(ctx context.Context, w *writer) (err error) {
		got, err = w.allSaved(ctx)
		return err
	}); err != nil {
		return nil, fmt.Errorf("cannot load the records of snapshots: %w", err)
	}
	return got, nil
}

// AddSnapshot implements vmm.Store. d.Number is set when it returns nil.
func (s *Store) AddSnapshot(ctx context.Context, d *vmm.DiskSnapshot) error {
	rec := *d
	if err := s.do(ctx, func(ctx context.Context, w *writer) error {
		return w.addSaved(ctx, &rec)
	}); err != nil {
		return fmt.Errorf("cannot record the snapshot %s: %w", d.Name, err)
	}
	d.Number = rec.Number
	return nil
}

// UpdateSnapshot implements vmm.Store. ErrNotFound if there is no such record.
func (s *Store) UpdateSnapshot(ctx context.Context, d *vmm.DiskSnapshot) error {
	rec := *d
	if err := s.do(ctx, func(ctx context.Context, w *writer) error {
		return found(w.saveAgain.ExecContext(ctx, savedValues(&rec)...))
	}); err != nil {
		return fmt.Errorf("cannot record the snapshot %s: %w", d.Name, err)
	}
	return nil
}

// DeleteSnapshot implements vmm.Store. ErrNotFound if there is no such record.
func (s *Store) DeleteSnapshot(ctx context.Context, d *vmm.DiskSnapshot) error {
	serial, number := int64(d.Serial), int64(d.Number)
	if err := s.do(ctx, func(ctx context.Context, w *writer) error {
		return found(w.unsave.ExecContext(ctx, serial, number))
	}); err != nil {
		return fmt.Errorf("cannot forget the snapshot %s: %w", d.Name, err)
	}
	return nil
}

// savedValues returns the values of d in the order of the columns of save and saveAgain.
func savedValues(d *vmm.DiskSnapshot) []any {
	return []any{d.Name, nanos(d.Created), string(d.State), d.Size, d.Frozen, string(d.Phase),
		int64(d.Serial), int64(d.Number)}
}

func (w *writer) allSaved(ctx context.Context) ([]vmm.DiskSnapshot, error) {
	rows, err := w.saved.QueryContext(ctx)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []vmm.DiskSnapshot
	for rows.Next() {
		var d vmm.DiskSnapshot
		var created int64
		err := rows.Scan(&d.Serial, &d.Number, &d.Name, &created, &d.State,
			&d.Size, &d.Frozen, &d.Phase)
		if err != nil {
			return nil, err
		}
		d.Created = fromNanos(created)
		out = append(out, d)
	}
	return out, rows.Err()
}

// addSaved inserts d with the next free number. A failure may skip a number, which does no harm.
func (w *writer) addSaved(ctx context.Context, d *vmm.DiskSnapshot) error {
	for range numbers {
		var made int64
		switch err := w.saveNumber.QueryRowContext(ctx, int64(d.Serial)).Scan(&made); {
		case errors.Is(err, sql.ErrNoRows):
			return vmm.ErrNotFound
		case err != nil:
			return err
		}
		d.Number = uint16((made-1)%numbers + 1)
		_, err := w.save.ExecContext(ctx, savedValues(d)...)
		if err == nil || !isNumberTaken(err) {
			return err
		}
	}
	return fmt.Errorf("%w: every number of a snapshot is taken", vmm.ErrNoSpace)
}

// isNumberTaken reports whether another snapshot has the number. A name in use violates another
// constraint, and SQLite's message names the columns.
func isNumberTaken(err error) bool {
	return errors.Is(mapped(err), vmm.ErrExists) &&
		strings.Contains(err.Error(), "snapshots.number")
}
