package store

import (
	"context"
	"database/sql"
	"errors"
	"strings"
)

// writer is the connection and its statements; only Store.work uses it.
type writer struct {
	begin, end, undo                   *sql.Stmt
	savepoint, release, rollbackTo     *sql.Stmt
	load, insert, update, remove       *sql.Stmt
	leaseOf, leases, leaseTake, exists *sql.Stmt
	saved, save, saveAgain, unsave     *sql.Stmt
	saveNumber                         *sql.Stmt
	quotas, setQuota, dropQuota        *sql.Stmt
	stmts                              []*sql.Stmt
	conn                               *sql.Conn
}

func newWriter(ctx context.Context, conn *sql.Conn) (*writer, error) {
	w := &writer{conn: conn}
	names := columns()
	list := strings.Join(names, ", ")
	marks := strings.Repeat(", ?", len(names))
	for _, p := range []struct {
		to   **sql.Stmt
		text string
	}{
		{&w.begin, "BEGIN IMMEDIATE"},
		{&w.end, "COMMIT"},
		{&w.undo, "ROLLBACK"},
		{&w.savepoint, "SAVEPOINT op"},
		{&w.release, "RELEASE op"},
		{&w.rollbackTo, "ROLLBACK TO op"},
		{&w.load, "SELECT " + list + ", vms.serial, mac, leases.address " +
			"FROM vms LEFT JOIN leases USING (serial) ORDER BY vms.serial"},
		{&w.insert, "INSERT INTO vms (" + list + ", mac) VALUES (" + marks[2:] + ", ?)"},
		{&w.update, "UPDATE vms SET " + strings.Join(names, " = ?, ") + " = ? WHERE serial = ?"},
		{&w.remove, "DELETE FROM vms WHERE serial = ?"},
		{&w.exists, "SELECT 1 FROM vms WHERE serial = ?"},
		{&w.leaseOf, "SELECT address FROM leases WHERE serial = ?"},
		{&w.leases, "SELECT address FROM leases WHERE serial <> ? ORDER BY address"},
		{&w.saved, "SELECT serial, number, name, created, state, size, frozen, phase " +
			"FROM snapshots ORDER BY created, number"},
		{&w.saveNumber, "UPDATE vms SET snapshots_made = snapshots_made + 1 " +
			"WHERE serial = ? RETURNING snapshots_made"},
		{&w.save, "INSERT INTO snapshots " +
			"(name, created, state, size, frozen, phase, serial, number) " +
			"VALUES (?, ?, ?, ?, ?, ?, ?, ?)"},
		{&w.saveAgain, "UPDATE snapshots " +
			"SET name = ?, created = ?, state = ?, size = ?, frozen = ?, phase = ? " +
			"WHERE serial = ? AND number = ?"},
		{&w.unsave, "DELETE FROM snapshots WHERE serial = ? AND number = ?"},
		{&w.leaseTake, "INSERT INTO leases (serial, address) VALUES (?, ?) " +
			"ON CONFLICT (serial) DO UPDATE SET address = excluded.address"},
		{&w.quotas, "SELECT uid, quota, most FROM quotas"},
		{&w.setQuota, "INSERT OR REPLACE INTO quotas (uid, quota, most) VALUES (?, ?, ?)"},
		{&w.dropQuota, "DELETE FROM quotas WHERE uid = ? AND quota = ?"},
	} {
		stmt, err := conn.PrepareContext(ctx, p.text)
		if err != nil {
			w.close()
			return nil, err
		}
		*p.to = stmt
		w.stmts = append(w.stmts, stmt)
	}
	return w, nil
}

func (w *writer) close() {
	for _, s := range w.stmts {
		_ = s.Close()
	}
}

// commit makes the group durable and sets each op's err. It has a context of its own, because a
// cancelled caller must not cancel the commit of the others.
func (w *writer) commit(group []*op) {
	ctx := context.Background()
	if len(group) == 1 {
		// One statement is its own transaction. BEGIN and a savepoint would cost a third more.
		group[0].err = group[0].run(ctx, w)
		return
	}
	err := w.together(ctx, group)
	if err == nil {
		return
	}
	// The whole group is undone. An op that failed by itself keeps its own error.
	_, _ = w.undo.ExecContext(ctx) // fails where SQLite has rolled back by itself
	for _, o := range group {
		switch {
		case o.err != nil:
		case errors.Is(err, errNoSavepoint):
			o.err = o.run(ctx, w)
		default:
			o.err = err
		}
	}
}

// errNoSavepoint means that the failure of one op has undone the others of its group.
var errNoSavepoint = errors.New("the transaction of the group is lost")

// together runs the ops in one transaction, each in a savepoint.
func (w *writer) together(ctx context.Context, group []*op) error {
	if _, err := w.begin.ExecContext(ctx); err != nil {
		return err
	}
	for _, o := range group {
		if _, err := w.savepoint.ExecContext(ctx); err != nil {
			return err
		}
		if o.err = o.run(ctx, w); o.err != nil {
			// On a full disk SQLite rolls back the whole transaction, with its savepoints.
			if _, err := w.rollbackTo.ExecContext(ctx); err != nil {
				return errNoSavepoint
			}
		}
		if _, err := w.release.ExecContext(ctx); err != nil {
			return err
		}
	}
	_, err := w.end.ExecContext(ctx)
	return err
}
