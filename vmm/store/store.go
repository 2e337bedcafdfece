// Package store keeps the records of VMs in SQLite; it implements [vmm.Store].
//
// One goroutine writes. Calls that wait at the same time share one transaction, each in a
// savepoint of its own, so that a failed call does not undo the others. Every call returns after
// its commit is synced (WAL, synchronous=FULL). The package starts no other goroutine and opens one
// connection only. The caller of Open holds the lock of the state directory.
package store

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"banger/internal/host"
	"banger/vmm"
)

// maxGroup bounds how many calls share one commit, and so how long the first of them waits.
const maxGroup = 512

// Store is an open database. Its methods may be called from many goroutines.
type Store struct {
	ops     chan *op
	closing chan struct{}
	closed  chan struct{}
	dir     string // of the database
	closeDB func() error
	err     error // of the close; valid once closed is closed

	commits, calls atomic.Uint64
}

// Counts returns how many transactions were made since Open, and how many calls they served.
func (s *Store) Counts() (commits, calls uint64) { return s.commits.Load(), s.calls.Load() }

// op is one call that waits for the writer. At most one statement of run changes the database.
// run runs again if another op of its group undid the group.
type op struct {
	run  func(context.Context, *writer) error
	err  error
	done chan struct{} // closed when err is final and the commit durable
}

var _ vmm.Store = (*Store)(nil)

// Open opens or creates the database at path, whose directory exists, and migrates its schema.
// It refuses a database of a newer banger. The caller closes the Store.
// Only this process's user can open the files, and this process alone has them locked.
func Open(ctx context.Context, path string) (*Store, error) {
	s, err := open(ctx, path, migrations)
	if err != nil {
		return nil, fmt.Errorf("cannot open %s: %w", path, explained(path, err))
	}
	return s, nil
}

// explained adds to err the process that has the database locked, if that is the cause.
func explained(path string, err error) error {
	var e *sqlite.Error
	if !errors.As(err, &e) || e.Code()&0xff != sqlite3.SQLITE_BUSY {
		return diskError(filepath.Dir(path), mapped(err))
	}
	holder := host.LockHolder(path)
	if holder == "" {
		holder = "another process, which fuser(1) may find"
	}
	return fmt.Errorf("it is locked by %s: end that and start again: %w", holder, vmm.ErrBusy)
}

// makePrivate creates the database if it is missing, and removes other users' permissions from all
// of its files. SQLite creates the other files with the mode of the database.
func makePrivate(path string) error {
	f, err := host.OpenPrivate(path)
	if err != nil {
		return err
	}
	errs := []error{f.Close()}
	for _, suffix := range []string{"-wal", "-shm", "-journal"} {
		errs = append(errs, host.MakePrivate(path+suffix))
	}
	return errors.Join(errs...)
}

// pragmas are the settings of the connection, in this order; the driver would sort those of its own
// parameter. Exclusive comes before WAL, so that SQLite keeps the log's index on the heap
// (sqlite.org/wal.html, "Use of WAL Without Shared-Memory"). In a mapped file, a frozen disk would
// stop a thread in a page fault, and then Go's garbage collector stops the whole process.
const pragmas = "PRAGMA busy_timeout = 5000; PRAGMA locking_mode = EXCLUSIVE; " +
	"PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = 1"

func open(ctx context.Context, path string, steps []string) (*Store, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	// Before SQLite: closing a file later would drop SQLite's locks on it (fcntl(2)).
	if err := makePrivate(path); err != nil {
		return nil, err
	}
	u := url.URL{Scheme: "file", Path: path,
		RawQuery: url.Values{"_txlock": {"immediate"}}.Encode()}
	db, err := sql.Open("sqlite", u.String())
	if err != nil {
		return nil, err
	}
	conn, err := db.Conn(ctx)
	if err != nil {
		_ = db.Close()
		return nil, err
	}
	closeDB := func() error { return errors.Join(conn.Close(), db.Close()) }
	if _, err := conn.ExecContext(ctx, pragmas); err != nil {
		_ = closeDB()
		return nil, err
	}
	if err := migrate(ctx, conn, steps); err != nil {
		_ = closeDB()
		return nil, err
	}
	// The first transaction acquires the lock, and locking_mode keeps it.
	if _, err := conn.ExecContext(ctx, "BEGIN IMMEDIATE; COMMIT"); err != nil {
		_ = closeDB()
		return nil, err
	}
	w, err := newWriter(ctx, conn)
	if err != nil {
		_ = closeDB()
		return nil, err
	}
	s := &Store{
		ops:     make(chan *op, maxGroup),
		closing: make(chan struct{}),
		closed:  make(chan struct{}),
		dir:     filepath.Dir(path),
		closeDB: closeDB,
	}
	go s.work(w)
	return s, nil
}

// Close waits for the writes under way and closes the database. The caller calls it once, after
// all other calls have returned.
func (s *Store) Close() error {
	close(s.closing)
	<-s.closed
	return s.err
}

// do runs f in the writer and returns after its writes are durable.
func (s *Store) do(ctx context.Context, f func(context.Context, *writer) error) error {
	o := &op{run: f, done: make(chan struct{})}
	select {
	case s.ops <- o:
	case <-ctx.Done():
		return ctx.Err()
	case <-s.closing:
		return errors.New("the store is closed")
	}
	select {
	case <-o.done:
		return diskError(s.dir, mapped(o.err))
	case <-ctx.Done():
		return ctx.Err()
	case <-s.closed:
		select {
		case <-o.done:
			return diskError(s.dir, mapped(o.err))
		default:
			return errors.New("the store is closed")
		}
	}
}

// work commits all waiting calls together, until Close.
func (s *Store) work(w *writer) {
	defer close(s.closed)
	var group []*op
	for {
		group = group[:0]
		select {
		case o := <-s.ops:
			group = append(group, o)
		case <-s.closing:
			select {
			case o := <-s.ops:
				group = append(group, o)
			default:
				w.close()
				s.err = s.closeDB()
				return
			}
		}
	more:
		for len(group) < maxGroup {
			select {
			case o := <-s.ops:
				group = append(group, o)
			default:
				break more
			}
		}
		w.commit(group)
		s.commits.Add(1)
		s.calls.Add(uint64(len(group)))
		for _, o := range group {
			close(o.done)
		}
	}
}

// Load implements vmm.Store.
func (s *Store) Load(ctx context.Context) ([]vmm.Record, error) {
	var got []vmm.Record
	if err := s.do(ctx, func(ctx context.Context, w *writer) (err error) {
		got, err = w.all(ctx)
		return err
	}); err != nil {
		return nil, fmt.Errorf("cannot load the records: %w", err)
	}
	return got, nil
}

// Insert implements vmm.Store. r.Serial and r.MAC are set when it returns nil.
func (s *Store) Insert(ctx context.Context, r *vmm.Record) error {
	rec := *r // the write goes on when ctx ends, and r is the caller's
	if err := s.do(ctx, func(ctx context.Context, w *writer) error {
		return w.add(ctx, &rec)
	}); err != nil {
		return fmt.Errorf("cannot record %s: %w", r.Name, err)
	}
	r.Serial, r.MAC = rec.Serial, rec.MAC
	return nil
}

// Update implements vmm.Store. It changes neither the MAC nor the leased address.
func (s *Store) Update(ctx context.Context, r *vmm.Record) error {
	rec := *r
	if err := s.do(ctx, func(ctx context.Context, w *writer) error {
		return found(w.update.ExecContext(ctx, append(fields(&rec), int64(rec.Serial))...))
	}); err != nil {
		return fmt.Errorf("cannot record %s: %w", r.Name, err)
	}
	return nil
}

// Delete implements vmm.Store. ErrNotFound if there is no such record.
func (s *Store) Delete(ctx context.Context, serial uint64) error {
	if err := s.do(ctx, func(ctx context.Context, w *writer) error {
		return found(w.remove.ExecContext(ctx, int64(serial)))
	}); err != nil {
		return fmt.Errorf("cannot forget the VM with serial %d: %w", serial, err)
	}
	return nil
}

func (w *writer) all(ctx context.Context) ([]vmm.Record, error) {
	rows, err := w.load.QueryContext(ctx)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []vmm.Record
	for rows.Next() {
		var r vmm.Record
		var address []byte
		if err := rows.Scan(append(fields(&r), &r.Serial, &r.MAC, &address)...); err != nil {
			return nil, err
		}
		r.Address, _ = netip.AddrFromSlice(address)
		out = append(out, r)
	}
	return out, rows.Err()
}

func (w *writer) add(ctx context.Context, r *vmm.Record) error {
	for try := 0; ; try++ {
		mac := net.HardwareAddr{2, 0, 0, 0, 0, 0}
		if _, err := rand.Read(mac[1:]); err != nil {
			return err
		}
		res, err := w.insert.ExecContext(ctx, append(fields(r), mac.String())...)
		if err != nil {
			if try < 8 && strings.Contains(err.Error(), "vms.mac") {
				continue
			}
			return err
		}
		id, err := res.LastInsertId()
		if err != nil {
			return err
		}
		r.Serial, r.MAC = uint64(id), mac.String()
		return nil
	}
}

// found returns ErrNotFound if the statement changed no row.
func found(res sql.Result, err error) error {
	if err != nil {
		return err
	}
	if n, err := res.RowsAffected(); err != nil || n > 0 {
		return err
	}
	return vmm.ErrNotFound
}

// mapped wraps the error of vmm that SQLite's code stands for.
func mapped(err error) error {
	if errors.Is(err, sql.ErrNoRows) {
		return vmm.ErrNotFound
	}
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return err
	}
	switch e.Code() {
	case sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY:
		return fmt.Errorf("%w (%v)", vmm.ErrExists, err)
	case sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE:
		return fmt.Errorf("%w (%v)", vmm.ErrNoSpace, err)
	case sqlite3.SQLITE_NOMEM:
		return fmt.Errorf("%w (%v)", vmm.ErrNoMemory, err)
	}
	return err
}

// diskError adds the cause to an error of I/O of the database in dir, if the file system is
// read-only or full. SQLite keeps the system's error to itself.
func diskError(dir string, err error) error {
	var e *sqlite.Error
	if !errors.As(err, &e) || e.Code()&0xff != sqlite3.SQLITE_IOERR {
		return err
	}
	// A change that changes nothing fails if the file system has become read-only.
	if cause := unix.UtimesNanoAt(unix.AT_FDCWD, dir, nil, 0); cause == unix.EROFS {
		return fmt.Errorf("%w (%v)", cause, err)
	}
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) == nil && st.Bavail == 0 {
		return fmt.Errorf("%w (%v)", vmm.ErrNoSpace, err)
	}
	return err
}
