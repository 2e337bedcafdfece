package fake

import (
	"errors"
	"strings"
	"testing"

	"banger/vmm"
)

func FuzzParseScript(f *testing.F) {
	for _, s := range []string{"fake.boot=200ms fake.start=fail", "quiet fake.listen=80/http/nginx/nginx%20-g,53/udp", "fake.exit=5s:reason fake.panic=3s fake.disk=4096 fake.agent=slow:1s"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, cmdline string) {
		s, err := parseScript(cmdline)
		if err != nil && !errors.Is(err, vmm.ErrInvalid) {
			t.Fatalf("%q is refused as no bad input: %v", cmdline, err)
		}
		if s.disk < 0 || s.disk > maxDisk || len(s.listen) > strings.Count(cmdline, ",")+1 {
			t.Errorf("%q is %+v", cmdline, s)
		}
	})
}
