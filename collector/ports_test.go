package collector

import (
	"slices"
	"testing"

	"banger/vmm"
	"banger/vmm/guest"
)

func TestPublishedRows(t *testing.T) {
	ls := canonical([]guest.Listener{
		{Protocol: "tcp", Port: 80, Address: "0.0.0.0", PID: 3, Process: "httpd"},
		{Protocol: "tcp6", Port: 80, Address: "::", PID: 3, Process: "httpd"},
		{Protocol: "tcp", Port: 81, Address: "127.0.0.1", PID: 4, Process: "inner"},
		{Protocol: "udp", Port: 80, Address: "0.0.0.0", PID: 5, Process: "udp"},
	})
	all, err := vmm.ParsePublications("8080:80\n0.0.0.0:8081:80\n[::]:8082:80\n8083:81\n8084:99")
	if err != nil {
		t.Fatal(err)
	}
	endpoints := func(rows []Port) (all []string) {
		for _, r := range rows {
			all = append(all, r.Endpoint)
		}
		slices.Sort(all)
		return all
	}
	for _, c := range []struct {
		guest string
		want  []string
	}{
		{"172.30.0.2", []string{"172.30.0.2:80", "172.30.0.2:81", "http://127.0.0.1:8080/", "http://127.0.0.1:8081/", "http://172.30.0.2:80/", "http://[::1]:8082/"}},
		{"", []string{"0.0.0.0:80", "127.0.0.1:81", "http://127.0.0.1:8080/", "http://127.0.0.1:8081/", "http://[::1]:8082/"}},
	} {
		got := endpoints(published(rows(ls, c.guest, map[probeKey]string{{80, 3, 0}: "http"}), all, c.guest != ""))
		if !slices.Equal(got, c.want) {
			t.Errorf("%q: got %q, want %q", c.guest, got, c.want)
		}
	}
}
