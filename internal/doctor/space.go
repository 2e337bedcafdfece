package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// What is little, and what is too little, in bytes.
const (
	leastMemory  = 192 << 20 // the smallest guest's memory and its QEMU
	littleMemory = 512 << 20
	leastDisk    = 128 << 20
	littleDisk   = 2 << 30 // an image of Debian, and its build
)

// daemon asks the daemon for its version.
func (h *Host) daemon(context.Context) finding {
	start := h.service("enable --now", "bangerd")
	restart := h.service("restart", "end bangerd with Ctrl-C or SIGTERM, and start it again")
	switch {
	case h.Mount == "":
		return warn("log in through PAM's systemd session, or set BANGER_MOUNT",
			"XDG_RUNTIME_DIR is not set, so there is no place for the mount")
	case h.Mute == nil && h.Daemon == h.Version:
		return ok("serves %s, version %s", h.Mount, h.Daemon)
	case h.Mute == nil:
		return warn(restart, "serves %s with version %s, and banger is %s", h.Mount, h.Daemon, h.Version)
	case errors.Is(h.Mute, errHangs):
		return fail(restart, "the daemon that serves %s does not answer", h.Mount)
	case errors.Is(h.Mute, syscall.ENOTCONN), errors.Is(h.Mute, syscall.ECONNABORTED):
		return warn(start, "the daemon that served %s has ended", h.Mount)
	case errors.Is(h.Mute, fs.ErrPermission):
		return warn(h.joinGroup("banger"), "%s is not this user's", h.Mount)
	}
	return warn(start, "no daemon serves %s", h.Mount)
}

// service returns the command that does this to the daemon, with systemd where it has the unit.
func (h *Host) service(systemctl, otherwise string) string {
	dir, command := "systemd/system", h.asRoot("systemctl ")
	if h.UID != 0 {
		dir, command = "systemd/user", "systemctl --user "
	}
	for _, above := range []string{"/etc", "/usr/lib", "/usr/local/lib", "/lib"} {
		if h.exists("/run/systemd/system") && h.exists(filepath.Join(above, dir, "bangerd.service")) {
			return command + systemctl + " bangerd"
		}
	}
	return otherwise
}

// memory looks at MemAvailable of /proc/meminfo (proc(5)).
func (h *Host) memory(context.Context) finding {
	words := fields(h.read("/proc/meminfo"), "MemAvailable:")
	if len(words) == 0 {
		return warn("free -m", "/proc/meminfo does not say what is available")
	}
	kib, err := strconv.ParseInt(words[0], 10, 53)
	if err != nil {
		return warn("free -m", "/proc/meminfo does not say what is available")
	}
	return space(kib<<10, leastMemory, littleMemory, "stop what else runs; see ps aux --sort -rss",
		"available")
}

// disk looks at the file system of the state directory.
func (h *Host) disk(context.Context) finding {
	n, err := h.Free(h.StateDir)
	if err != nil {
		return warn("df -h "+h.StateDir, "the free space of %s is unknown: %v", h.StateDir, reason(err))
	}
	return space(int64(min(n, 1<<62)), leastDisk, littleDisk,
		"banger image gc, or state_dir on a larger file system", "free for "+h.StateDir)
}

// space judges an amount of bytes.
func space(n, least, little int64, remedy, what string) finding {
	text := fmt.Sprintf("%d MiB %s", n>>20, what)
	switch {
	case n < least:
		return fail(remedy, "%s, too little for any guest", text)
	case n < little:
		return warn(remedy, "%s, little", text)
	}
	return ok("%s", text)
}

// image looks for the image that new VMs boot. A daemon knows whether it is ready; without one, the
// last file of a build says so.
func (h *Host) image(context.Context) finding {
	name := h.setting("image", "builtin")
	dir, status := filepath.Join(h.Mount, "images", name), "ready"
	var err error
	if h.Served != nil {
		status, err = readFile(filepath.Join(dir, "status"))
	} else {
		_, err = os.Stat(filepath.Join(h.StateDir, "images", name, "image.json"))
	}
	remedy := "banger image ls"
	if name == "builtin" {
		remedy = "banger image builtin"
	}
	status = strings.TrimSpace(status)
	why, failed := strings.CutPrefix(status, "failed ")
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return warn(remedy, "no image %s: new VMs need one, or -i SOURCE", name)
	case err != nil:
		return warn("banger image ls", "the image %s is not known: %v", name, reason(err))
	case strings.HasPrefix(status, "building"):
		return warn("cat "+filepath.Join(dir, "wait/ready"), "the image %s is %s %%", name, status)
	case failed:
		return warn(remedy, "the image %s could not be made: %s", name, why)
	case status != "ready":
		return warn(remedy, "the image %s is %s", name, status)
	}
	return ok("new VMs boot %s", name)
}
