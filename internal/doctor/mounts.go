package doctor

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"syscall"
)

// fuse looks for the device of the mount.
func (h *Host) fuse(context.Context) finding {
	const device = "/dev/fuse"
	err := h.Open(h.path(device))
	switch {
	case err == nil:
		return ok("%s opens", device)
	case errors.Is(err, fs.ErrPermission):
		return fail(h.asRoot("chmod 666 "+device), "%s is not this user's", device)
	}
	return fail(h.asRoot("modprobe fuse"), "%s: %v", device, reason(err))
}

// fusermount looks for the setuid program by which ordinary users mount.
func (h *Host) fusermount(context.Context) finding {
	const program = "fusermount3"
	path := h.Find(program)
	if path == "" {
		return fail(h.install("fuse3"), "no %s", program)
	}
	info, err := os.Stat(path)
	if err != nil {
		return fail(h.install("fuse3"), "%s: %v", path, reason(err))
	}
	st, known := info.Sys().(*syscall.Stat_t)
	if info.Mode()&fs.ModeSetuid == 0 || known && st.Uid != 0 {
		return fail(h.asRoot(`sh -c "chown root `+path+` && chmod u+s `+path+`"`),
			"%s is not setuid root, so no ordinary user mounts", path)
	}
	return ok("%s is setuid root", path)
}

// allowOther looks whether an ordinary user may open the mount to others (mount.fuse3(8)).
func (h *Host) allowOther(context.Context) finding {
	const file, line = "/etc/fuse.conf", "user_allow_other"
	if hasLine(h.read(file), line) {
		return ok("%s has %s: root and members of VMs' groups read the mount, too", file, line)
	}
	return warn(h.asRoot(`sh -c "echo `+line+` >> `+file+`"`),
		"%s lacks %s: only this user reads the mount, not even root", file, line)
}

// tun looks for the device of the guests' network.
func (h *Host) tun(context.Context) finding {
	const device = "/dev/net/tun"
	if err := h.Open(h.path(device)); err != nil {
		return fail(h.asRoot("modprobe tun"), "%s: %v; VMs with net = bridge do not start", device,
			reason(err))
	}
	return ok("%s opens", device)
}
