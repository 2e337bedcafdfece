package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// freeAddress is a loopback address that nobody listens on now.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	return l.Addr().String()
}

// metricsDaemon starts a daemon with a running VM, `web`, whose files were read, and a stopped one,
// `idle`. It returns the address of the daemon's metrics.
func metricsDaemon(t *testing.T) (*daemon, string) {
	t.Helper()
	address := freeAddress(t)
	d := testDaemon(t, "fake", fmt.Sprintf("metrics_listen = %q", address))
	for _, name := range []string{"web", "idle"} {
		must(t, os.Mkdir(d.path(name), 0o755))
		must(t, write(d.path(name, "vmm"), "fake"))
	}
	must(t, write(d.path("web", "state"), "start"))
	for _, name := range []string{"wait/healthy", "stats", "health", "ports"} {
		if _, err := read(d.path("web", name)); err != nil {
			t.Fatal(err)
		}
	}
	return d, address
}

func get(t *testing.T, url, accept string) (*http.Response, []byte) {
	t.Helper()
	r, err := http.NewRequest(http.MethodGet, url, nil)
	must(t, err)
	r.Header.Set("Accept", accept)
	a, err := http.DefaultClient.Do(r)
	must(t, err)
	defer a.Body.Close()
	b, err := io.ReadAll(a.Body)
	must(t, err)
	return a, b
}

func parse(t *testing.T, text []byte) map[string]*dto.MetricFamily {
	t.Helper()
	p := expfmt.NewTextParser(model.LegacyValidation)
	families, err := p.TextToMetricFamilies(bytes.NewReader(text))
	must(t, err)
	return families
}

// series returns the values of a family by the VM's name.
func series(f *dto.MetricFamily) map[string]float64 {
	values := map[string]float64{}
	for _, m := range f.GetMetric() {
		for _, l := range m.Label {
			if l.GetName() == "vm" {
				values[l.GetValue()] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
	}
	return values
}

// TestMetrics reads the file and scrapes the same over HTTP. The text is clean by promlint, agrees
// with the other files, and lacks unknown figures.
func TestMetrics(t *testing.T) {
	d, address := metricsDaemon(t)
	before, err := read(filepath.Join(d.mount, "stats"))
	must(t, err)
	text, err := os.ReadFile(filepath.Join(d.mount, "metrics"))
	must(t, err)
	after, err := read(filepath.Join(d.mount, "stats"))
	must(t, err)
	if guestCalls(before) != guestCalls(after) {
		t.Errorf("reading metrics made guests work:\n%s\nthen\n%s", before, after)
	}
	problems, err := promlint.New(bytes.NewReader(text)).Lint()
	must(t, err)
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	families := parse(t, text)
	for name, want := range map[string]map[string]float64{
		"banger_vm_running": {"web": 1, "idle": 0},
		"banger_vm_healthy": {"web": 1},
		"banger_vm_cpus":    {"web": 1, "idle": 1},
	} {
		if got := series(families[name]); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s is %v, not %v", name, got, want)
		}
	}
	if got := series(families["banger_vm_guest_processes"]); len(got) != 1 || got["web"] <= 0 {
		t.Errorf("banger_vm_guest_processes is %v", got)
	}

	for accept, kind := range map[string]string{"": "text/plain",
		"application/openmetrics-text; version=1.0.0": "application/openmetrics-text"} {
		a, body := get(t, "http://"+address+"/metrics", accept)
		got := a.Header.Get("Content-Type")
		if a.StatusCode != http.StatusOK || !strings.HasPrefix(got, kind) ||
			!bytes.Contains(body, []byte(`banger_vm_running{vm="web"} 1`)) {
			t.Errorf("asked for %q: %s, %s\n%.400s", accept, a.Status, got, body)
		}
	}
	if a, _ := get(t, "http://"+address+"/", ""); a.StatusCode != http.StatusNotFound {
		t.Errorf("another path gives %s", a.Status)
	}
	a, err := http.Post("http://"+address+"/metrics", "text/plain", nil)
	if err != nil || a.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST gives %v, %v", a, err)
	}
}

func guestCalls(stats string) string {
	i := strings.Index(stats, "guest_calls")
	return stats[i:]
}

// TestContrib checks that what contrib/ asks for is there, with Prometheus's own tools.
func TestContrib(t *testing.T) {
	if _, err := exec.LookPath("promtool"); err != nil {
		t.Skip("apt install prometheus")
	}
	d, _ := metricsDaemon(t)
	text, err := os.ReadFile(filepath.Join(d.mount, "metrics"))
	must(t, err)
	var names []string
	for name := range parse(t, text) {
		names = append(names, name, name+"_count", name+"_bucket", name+"_sum")
	}
	contrib := filepath.Join(module, "contrib")
	// A fake guest without disks and link has no such series.
	without := regexp.MustCompile(`^banger_vm_(disk|network|guest_filesystem)_`)
	for _, file := range []string{"alerts.yml", "alerts_test.yml", "grafana.json"} {
		b, err := os.ReadFile(filepath.Join(contrib, file))
		must(t, err)
		metric := regexp.MustCompile(`\b(banger|process|go)_[a-z0-9_]+`)
		for _, name := range metric.FindAllString(string(b), -1) {
			if !slices.Contains(names, name) && !without.MatchString(name) {
				t.Errorf("%s asks for %s, which is no metric", file, name)
			}
		}
	}
	queries := dashboardQueries(t, filepath.Join(contrib, "grafana.json"))
	for _, args := range [][]string{
		{"check", "rules", filepath.Join(contrib, "alerts.yml")},
		{"test", "rules", filepath.Join(contrib, "alerts_test.yml")},
		{"check", "config", filepath.Join(contrib, "prometheus.yml")},
		{"check", "rules", queries},
	} {
		if out, err := exec.Command("promtool", args...).CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// dashboardQueries writes the queries of a dashboard's panels as rules, which promtool can check.
func dashboardQueries(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	must(t, err)
	var dashboard struct {
		Panels []struct {
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(b, &dashboard); err != nil {
		t.Fatalf("cannot read %s: %v", file, err)
	}
	type rule struct {
		Record string `json:"record"`
		Expr   string `json:"expr"`
	}
	rules := []rule{}
	for _, p := range dashboard.Panels {
		for _, q := range p.Targets {
			variables := strings.NewReplacer("$__rate_interval", "1m",
				"$vm", ".*", "$instance", ".*")
			expr := variables.Replace(q.Expr)
			rules = append(rules, rule{fmt.Sprintf("query%d", len(rules)), expr})
		}
	}
	if len(rules) == 0 {
		t.Fatalf("%s asks for nothing", file)
	}
	group := map[string]any{"name": "dashboard", "rules": rules}
	text, err := json.Marshal(map[string]any{"groups": []any{group}}) // JSON is YAML, too
	must(t, err)
	path := filepath.Join(t.TempDir(), "queries.yml")
	must(t, os.WriteFile(path, text, 0o644))
	return path
}

// TestPrometheus has a real Prometheus scrape the daemon and asks it what it saw.
func TestPrometheus(t *testing.T) {
	if _, err := exec.LookPath("prometheus"); err != nil {
		t.Skip("apt install prometheus")
	}
	d, address := metricsDaemon(t)
	dir, listen := t.TempDir(), freeAddress(t)
	config := filepath.Join(dir, "prometheus.yml")
	text := fmt.Sprintf("scrape_configs:\n- {job_name: banger, scrape_interval: 500ms, "+
		"scrape_timeout: 500ms, static_configs: [{targets: [%q]}]}\n", address)
	must(t, os.WriteFile(config, []byte(text), 0o644))
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var log bytes.Buffer
	p := exec.CommandContext(ctx, "prometheus", "--config.file="+config,
		"--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+listen)
	p.Stdout, p.Stderr = &log, &log
	must(t, p.Start())
	defer func() {
		_ = p.Process.Kill()
		_ = p.Wait() // killed
		if t.Failed() {
			t.Logf("%s", &log)
		}
	}()
	want := "map[idle:0 web:1]"
	query := "http://" + listen + "/api/v1/query?query=" + url.QueryEscape("banger_vm_running")
	for {
		got, err := ask(ctx, query)
		if err == nil && fmt.Sprint(got) == want {
			break
		}
		select {
		case <-ctx.Done():
			t.Fatalf("Prometheus says %v (%v), not %s", got, err, want)
		case <-time.After(100 * time.Millisecond):
		}
	}
	must(t, write(d.path("web", "state"), "stop"))
	for want = "map[idle:0 web:0]"; ; time.Sleep(100 * time.Millisecond) {
		if got, err := ask(ctx, query); err == nil && fmt.Sprint(got) == want {
			return
		} else if ctx.Err() != nil {
			t.Fatalf("Prometheus says %v (%v) after the stop, not %s", got, err, want)
		}
	}
}

// ask returns the values of a query of Prometheus's HTTP API by VM.
func ask(ctx context.Context, query string) (map[string]string, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, query, nil)
	if err != nil {
		return nil, err
	}
	a, err := http.DefaultClient.Do(r)
	if err != nil {
		return nil, err
	}
	defer a.Body.Close()
	var answer struct {
		Data struct {
			Result []struct {
				Metric map[string]string
				Value  [2]any
			}
		}
	}
	if err := json.NewDecoder(a.Body).Decode(&answer); err != nil {
		return nil, err
	}
	values := map[string]string{}
	for _, r := range answer.Data.Result {
		values[r.Metric["vm"]] = fmt.Sprint(r.Value[1])
	}
	return values, nil
}
