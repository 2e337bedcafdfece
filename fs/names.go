package fs

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

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

// The parameter of an image's nodes is its place among the sorted names, from 1.
func imagesList(r *request) []entry {
	var entries []entry
	for i, name := range r.server.o.Images.Names() {
		entries = append(entries, entry{name: name, row: imageRow.row, param: uint16(i + 1)})
	}
	return entries
}

func imagesFind(r *request, name string) (entry, bool) {
	i := slices.Index(r.server.o.Images.Names(), name)
	return entry{name: name, row: imageRow.row, param: uint16(i + 1)}, i >= 0
}

func portFind(r *request, name string) (entry, bool) {
	port, err := strconv.ParseUint(name, 10, 16)
	ok := err == nil && port > 0 && name == strconv.FormatUint(port, 10)
	return entry{name: name, serial: r.vm.Serial(), row: portRow.row, param: uint16(port)}, ok
}

func imageFiles() []file {
	image := func(name, doc string, get func(r *request, i vmm.Image) string) file {
		return file{name: name, mode: 0o444, doc: doc, show: func(r *request) ([]byte, error) {
			names := r.server.o.Images.Names()
			if int(r.param) < 1 || int(r.param) > len(names) {
				return nil, vmm.ErrNotFound
			}
			i, err := r.server.o.Images.Image(names[r.param-1])
			if err != nil {
				return nil, err
			}
			return line(get(r, i))
		}}
	}
	return []file{
		image("source", "what it is built from", func(_ *request, i vmm.Image) string { return i.Source }),
		image("status", "ready, building PERCENT or failed REASON", func(*request, vmm.Image) string { return "ready" }),
		image("size", "bytes", func(_ *request, i vmm.Image) string { return strconv.FormatInt(i.Size, 10) }),
		image("digest", "of its inputs", func(_ *request, i vmm.Image) string { return i.Digest }),
		image("kernel", "the kernel's file", func(_ *request, i vmm.Image) string { return i.Kernel }),
		image("cmdline", "the kernel's command line", func(_ *request, i vmm.Image) string { return i.Cmdline }),
		image("memory", "least bytes of memory", func(_ *request, i vmm.Image) string { return strconv.FormatInt(i.Memory, 10) }),
		image("created", "Unix seconds", func(_ *request, i vmm.Image) string { return formatTime(i.Created) }),
		image("used_by", "VM names, one per line", func(r *request, i vmm.Image) string {
			var users []string
			for _, v := range r.server.o.Manager.VMs() {
				if s := v.Snapshot(); s.Config.Image == i.Name {
					users = append(users, s.Name)
				}
			}
			return strings.Join(users, "\n")
		}),
	}
}

func pidText(s *vmm.Snapshot) string {
	if s.Process.PID == 0 {
		return ""
	}
	return strconv.Itoa(s.Process.PID)
}

func addressText(s *vmm.Snapshot) string {
	if a := s.GuestAddress(); a != (netip.Addr{}) {
		return a.String()
	}
	return ""
}

func topErrorShow(r *request) ([]byte, error) {
	r.server.refusalsMu.Lock()
	defer r.server.refusalsMu.Unlock()
	return line(sentence(r.server.refusals[r.uid]))
}
