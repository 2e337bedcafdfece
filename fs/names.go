package fs

import (
	"context"
	"net/netip"
	"strconv"

	"banger/vmm"
)

func vmsList(r *request) []entry {
	vms := r.server.o.Manager.VMs()
	entries := make([]entry, 0, len(vms))
	for _, v := range vms {
		entries = append(entries, entry{name: v.Snapshot().Name, serial: v.Serial(), row: vmRow.row})
	}
	return entries
}

func vmsFind(r *request, name string) (entry, bool) {
	v := r.server.o.Manager.VM(name)
	if v == nil {
		return entry{}, false
	}
	return entry{name: name, serial: v.Serial(), row: vmRow.row}, true
}

func vmsMake(r *request, name string, owner vmm.Owner) error {
	var v *vmm.VM
	err := r.detached(func(ctx context.Context) (err error) {
		v, err = r.server.o.Manager.Create(ctx, name, owner)
		return err
	})
	if err == nil {
		r.file, r.vm, r.node = vmRow, v, nodeID(v.Serial(), vmRow.row, 0)
	}
	return err
}

func vmsRemove(r *request, name string) error {
	m, may := r.server.o.Manager, r.mayDelete()
	r.vm = m.VM(name)
	return r.detached(func(ctx context.Context) error { return m.Remove(ctx, name, may) })
}

func portFind(r *request, name string) (entry, bool) {
	port, err := strconv.ParseUint(name, 10, 16)
	ok := err == nil && port > 0 && name == strconv.FormatUint(port, 10)
	return entry{name: name, serial: r.vm.Serial(), row: portRow.row, param: uint16(port)}, ok
}

func pidText(s *vmm.Snapshot) string {
	if s.Process.PID == 0 {
		return ""
	}
	return strconv.Itoa(s.Process.PID)
}

func addressText(s *vmm.Snapshot) string  { return validText(s.GuestAddress()) }
func address6Text(s *vmm.Snapshot) string { return validText(s.GuestAddress6()) }

func validText(a netip.Addr) string {
	if a.IsValid() {
		return a.String()
	}
	return ""
}

func topErrorShow(r *request) ([]byte, error) {
	r.server.refusalsMu.Lock()
	defer r.server.refusalsMu.Unlock()
	return line(sentence(r.server.refusals[r.uid]))
}
