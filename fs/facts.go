package fs

import (
	"net/netip"
	"strconv"

	"banger/internal/value"
	"banger/vmm"
)

// fact returns the row of one word of the VM's snapshot.
func fact(name, doc string, text func(*vmm.Snapshot) string) file {
	return file{name: name, mode: 0o440, doc: doc, show: func(r *request) ([]byte, error) {
		return line(text(r.snap()))
	}}
}

func pidText(s *vmm.Snapshot) string {
	if s.Process.PID == 0 {
		return ""
	}
	return strconv.Itoa(s.Process.PID)
}

func createdText(s *vmm.Snapshot) string { return value.FormatTime(s.Created) }
func startedText(s *vmm.Snapshot) string { return value.FormatTime(s.Started) }

func addressText(s *vmm.Snapshot) string  { return validText(s.GuestAddress()) }
func address6Text(s *vmm.Snapshot) string { return validText(s.GuestAddress6()) }

func validText(a netip.Addr) string {
	if a.IsValid() {
		return a.String()
	}
	return ""
}

func hostKeyShow(r *request) ([]byte, error) { return line(r.vm.HostKey()) }

func versionShow(r *request) ([]byte, error) { return line(r.server.o.Version) }

func daemonConfigShow(r *request) ([]byte, error) { return []byte(r.server.o.Config()), nil }

func metricsShow(r *request) ([]byte, error) { return r.server.o.Metrics.Text() }

func hostsShow(r *request) ([]byte, error) { return r.server.o.Manager.Hosts(true), nil }
