package doctor

import (
	"context"
	"debug/elf"
	"errors"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"

	"banger/internal/host"
)

// busybox looks for the programs of the built-in image.
func (h *Host) busybox(context.Context) finding {
	path := h.path("/bin/busybox")
	if !h.exists("/bin/busybox") {
		path = h.Find("busybox")
	}
	return h.static(path, "busybox", h.install("busybox"))
}

// agentDirs are where the agent is installed, beside the directory of banger itself.
var agentDirs = []string{"/usr/lib/banger", "/usr/local/lib/banger", "/usr/libexec/banger"}

// agent looks for the guests' agent.
func (h *Host) agent(context.Context) finding {
	const name = "banger-agent"
	beside := filepath.Join(h.Programs, name)
	paths := []string{beside, filepath.Join(h.Programs, "../lib/banger", name)}
	for _, dir := range agentDirs {
		paths = append(paths, h.path(filepath.Join(dir, name)))
	}
	for _, path := range paths {
		if f := h.static(path, name, "make build"); f.status == OK {
			return f
		}
	}
	return warn("install banger's package again", "no %s beside banger or in %s: "+
		"no image can be built", name, agentDirs[0])
}

// static judges a program that is to run in guests.
func (h *Host) static(path, name, remedy string) finding {
	if path == "" {
		return warn(remedy, "no %s: the built-in image cannot be built", name)
	}
	f, err := elf.Open(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return warn(remedy, "no %s: the built-in image cannot be built", name)
	case err != nil:
		return warn(remedy, "%s cannot be read as a program: %v", path, err)
	}
	defer f.Close()
	if !host.IsStatic(f) {
		return warn(remedy, "%s is not static: the built-in image cannot be built", path)
	}
	return ok("%s is static", path)
}

// mmdebstrap looks for what makes images of debian:SUITE.
func (h *Host) mmdebstrap(context.Context) finding {
	if path := h.Find("mmdebstrap"); path != "" {
		return ok("%s", path)
	}
	return warn(h.install("mmdebstrap"), "no mmdebstrap: no image of debian:SUITE can be made")
}

// subuid looks for what mmdebstrap needs as an ordinary user (subuid(5), newuidmap(1)).
func (h *Host) subuid(context.Context) finding {
	const without = "no image of debian:SUITE can be made as this user"
	if h.Find("newuidmap") == "" {
		return warn(h.install("newuidmap"), "no newuidmap: %s", without)
	}
	for _, f := range []struct{ file, option string }{
		{"/etc/subuid", "--add-subuids"}, {"/etc/subgid", "--add-subgids"},
	} {
		if !h.hasRange(h.read(f.file)) {
			return warn(h.asRoot("usermod "+f.option+" 100000-165535 "+h.User),
				"%s has no range for %s: %s", f.file, h.User, without)
		}
	}
	for _, f := range []struct{ file, want string }{
		{"/proc/sys/kernel/unprivileged_userns_clone", "1"},
		{"/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "0"},
	} {
		if v := strings.TrimSpace(h.read(f.file)); v != "" && v != f.want {
			key := strings.ReplaceAll(strings.TrimPrefix(f.file, "/proc/sys/"), "/", ".")
			return warn(h.asRoot("sysctl -w "+key+"="+f.want),
				"ordinary users make no user namespaces: %s", without)
		}
	}
	return ok("%s has subordinate ids", h.User)
}

// hasRange reports whether a file of subordinate ids has a range for this user.
func (h *Host) hasRange(text string) bool {
	for line := range strings.Lines(text) {
		words := strings.Split(strings.TrimSpace(line), ":")
		if len(words) == 3 && (words[0] == h.User || words[0] == strconv.Itoa(h.UID)) {
			return true
		}
	}
	return false
}
