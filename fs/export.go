package fs

import (
	"io"

	"banger/vmm"
)

// Bounds of the exports that are open at once, each of which keeps copies of disks.
const (
	maxExports       = 4 // of one VM
	maxExportsOfUser = 8
)

// exportOpen makes an archive of the VM. Its duration grows with the length of the disks.
func exportOpen(r *openRequest) (handle, error) {
	ofVM, ofUser := &r.server.exports, &r.server.exporters
	serial, uid := r.vm.Serial(), uint64(r.uid)
	if !ofVM.acquire(serial) {
		return nil, r.tooMany("%s has %d exports open: close some: %w",
			r.snap().Name, ofVM.most, vmm.ErrBusy)
	}
	if !ofUser.acquire(uid) {
		ofVM.release(serial)
		return nil, r.tooMany("uid %d has %d exports open: close some: %w",
			uid, ofUser.most, vmm.ErrBusy)
	}
	end := func() {
		ofVM.release(serial)
		ofUser.release(uid)
	}
	defer r.blocking()()
	a, err := r.server.o.Archives.Export(r.ctx, r.vm)
	if err != nil {
		end()
		r.vm.Fail(err)
		return nil, err
	}
	return export{a, end}, nil
}

// export is an open archive of a VM.
type export struct {
	vmm.Archive
	end func()
}

func (e export) read(_ *call, p []byte, off int64) ([]byte, error) {
	n, err := e.ReadAt(p, off)
	if err == io.EOF {
		err = nil
	}
	return p[:n], err
}

func (e export) close() {
	e.Close()
	e.end()
}
