package host

import (
	"errors"
	"path/filepath"
)

// Places are the paths of a daemon.
type Places struct{ Mount, State, Config string }

// DefaultPlaces returns the paths that bangerd(8) documents, of root's or an ordinary user's daemon.
// Without XDG_RUNTIME_DIR it returns an error and no mount. The error matters only if no flag names
// a mount.
func DefaultPlaces(root bool, env func(string) string) (Places, error) {
	if root {
		return Places{"/run/banger", "/var/lib/banger", "/etc/banger/config.toml"}, nil
	}
	home := env("HOME")
	or := func(name, otherwise string) string {
		if v := env(name); filepath.IsAbs(v) {
			return v
		}
		return filepath.Join(home, otherwise)
	}
	p := Places{State: filepath.Join(or("XDG_STATE_HOME", ".local/state"), "banger"),
		Config: filepath.Join(or("XDG_CONFIG_HOME", ".config"), "banger/config.toml")}
	run := env("XDG_RUNTIME_DIR")
	if !filepath.IsAbs(run) {
		return p, errors.New("XDG_RUNTIME_DIR is not set, so there is no place for the mount: " +
			"log in through PAM's systemd session, or use --mount DIR")
	}
	p.Mount = filepath.Join(run, "banger")
	return p, nil
}
