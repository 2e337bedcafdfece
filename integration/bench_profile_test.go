package integration

import (
	"flag"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
)

var profiles = flag.String("report.profile", "",
	"save CPU profiles of the daemon in this directory, one for each part that names one")

// profileEnv holds the path of the socket that a daemon built with the tag profile listens on.
const profileEnv = "BANGER_PROFILE"

func (d *daemon) profileSocket() string { return filepath.Join(filepath.Dir(d.mount), "profile") }

// profiled calls do. With -report.profile it saves the daemon's CPU profile of that time as
// NAME.pprof.
func (d *daemon) profiled(t *testing.T, name string, do func()) {
	t.Helper()
	if *profiles == "" {
		do()
		return
	}
	c, err := net.Dial("unix", d.profileSocket())
	must(t, err)
	defer c.Close()
	do()
	must(t, c.(*net.UnixConn).CloseWrite()) // ends the profile
	must(t, os.MkdirAll(*profiles, 0o755))
	f, err := os.Create(filepath.Join(*profiles, name+".pprof"))
	must(t, err)
	defer f.Close()
	_, err = io.Copy(f, c)
	must(t, err)
}
