package fs

import (
	"context"
	"fmt"
	"time"

	"banger/internal/value"
	"banger/vmm"
)

func vmsList(r *request) []dirent {
	vms := r.server.o.Manager.VMs()
	list := make([]dirent, len(vms))
	for i, v := range vms {
		list[i] = dirent{name: v.Snapshot().Name, serial: v.Serial()}
	}
	return list
}

func vmsFind(r *request, name string) (dirent, bool) {
	v := r.server.o.Manager.VM(name)
	if v == nil {
		return dirent{}, false
	}
	return dirent{name: name, serial: v.Serial()}, true
}

func vmsMkdir(r *request, name string, owner vmm.Owner) error {
	return r.detached(func(ctx context.Context) error {
		_, err := r.server.o.Manager.Create(ctx, name, owner)
		return err
	})
}

func vmsRmdir(r *request, name string) error {
	mayDelete := r.mayDelete()
	return r.detached(func(ctx context.Context) error {
		return r.server.o.Manager.Remove(ctx, name, mayDelete)
	})
}

func vmsRename(r *request, from, to string) error {
	mayDelete := r.mayDelete()
	return r.detached(func(ctx context.Context) error {
		return r.server.o.Manager.Rename(ctx, from, to, mayDelete)
	})
}

func vmsAttr(r *request, a *attributes) { a.changed = r.server.o.Manager.ListChanged() }

func vmAttr(r *request, a *attributes) { a.mode = r.snap().Owner.Mode & 0o7777 }

// vmChown changes a VM's owner, group and mode. The kernel has checked the permission by what it
// knows; the check here is of the owner at the time of the change.
func vmChown(r *request, c ownerChange) error {
	name, uid, root := r.snap().Name, r.uid, r.isRoot()
	return r.detached(func(ctx context.Context) error {
		err := r.vm.Chown(ctx, func(o vmm.Owner) (vmm.Owner, error) {
			if !root && (uid != o.UID || c.uid != nil && *c.uid != o.UID) {
				return o, vmm.ErrNotPermitted
			}
			if c.uid != nil {
				o.UID = *c.uid
			}
			if c.gid != nil {
				o.GID = *c.gid
			}
			if c.mode != nil {
				o.Mode = *c.mode & 0o7777
			}
			return o, nil
		})
		if err != nil {
			return fmt.Errorf("cannot change the owner of %s: %w", name, err)
		}
		return nil
	})
}

func touchedShow(r *request) ([]byte, error) { return line(value.FormatTime(r.vm.Touched())) }

func touchedStore(w *writeRequest, text string) error {
	if text == "" {
		w.vm.Touch()
		return nil
	}
	t, err := value.ParseTime(text)
	if err != nil {
		return fmt.Errorf("cannot set touched of %s: %w", w.snap().Name, err)
	}
	w.vm.SetTouched(notAfterNow(t))
	return nil
}

// touchedAttr shows the last use, which publishes no snapshot.
func touchedAttr(r *request, a *attributes) {
	if used := r.vm.Touched(); used.After(a.changed) {
		a.changed = used
	}
}

// notAfterNow keeps a lease from being renewed into the future.
func notAfterNow(t time.Time) time.Time {
	if now := time.Now(); t.After(now) {
		return now
	}
	return t
}
