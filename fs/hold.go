package fs

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"banger/vmm"
)

// holder is an open `hold` that may be written. Its VMs are removed when it is closed: the kernel
// closes the files of a process, however that ends.
type holder struct {
	mu     sync.Mutex // guards what follows
	closed bool
	vms    []*vmm.VM
}

// add makes a held VM one of the holder's.
func (h *holder) add(v *vmm.VM) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed { // while the VM was made
		v.LetGo()
		return
	}
	h.vms = append(h.vms, v)
}

// release lets go of all VMs. It does nothing on nil.
func (h *holder) release() {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	for _, v := range h.vms {
		v.LetGo()
	}
	h.vms = nil
}

// heldShow lists the VMs that are removed with their holder.
func heldShow(r *request) ([]byte, error) {
	var b strings.Builder
	for _, v := range r.server.o.Manager.VMs() {
		if s := v.Snapshot(); s.Held {
			b.WriteString(s.Name + "\n")
		}
	}
	return []byte(b.String()), nil
}

// holdStore makes a VM that the open file holds, or makes the open file hold a VM.
func holdStore(w *writeRequest, text string) error {
	word, name, _ := strings.Cut(text, " ")
	m, held, may := w.server.o.Manager, w.holder, w.mayDelete()
	owner := vmm.Owner{UID: w.uid, GID: w.gid, Mode: 0o755}
	var begin func(context.Context) (*vmm.VM, error)
	switch word {
	case "create":
		begin = func(ctx context.Context) (*vmm.VM, error) {
			return m.CreateHeld(ctx, name, owner)
		}
	case "hold":
		begin = func(ctx context.Context) (*vmm.VM, error) {
			v := m.VM(name)
			if v == nil {
				return nil, fmt.Errorf("cannot hold %s: %w", name, vmm.ErrNotFound)
			}
			return v, v.Hold(ctx, may)
		}
	default:
		return fmt.Errorf("hold takes `create NAME` or `hold NAME`, not %.64q: %w",
			text, vmm.ErrInvalid)
	}
	return w.detached(func(ctx context.Context) error {
		v, err := begin(ctx)
		if err == nil {
			held.add(v)
		}
		return err
	})
}
