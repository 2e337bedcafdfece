package image

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"banger/internal/tartest"
	"banger/vmm"
	"banger/vmm/image/rootfs"
)

// fault is how a registry answers one request in place of the right answer; false lets it answer.
type fault func(w http.ResponseWriter, r *http.Request, content []byte) bool

// shaky is a registry of one image, app:x, that breaks as the test wants. The configuration does
// not list the image's layer: a build ends with arrived when it has all, before it makes a disk.
type shaky struct {
	url    string
	layer  []byte
	faults map[string][]fault // by ping, manifest, config and layer, for the first, second ... request

	mu    sync.Mutex
	asked map[string][]string // the Range of each request
}

const arrived = "its configuration lists 0 layers, it has 1"

func newShaky(t *testing.T, faults map[string][]fault) *shaky {
	random := make([]byte, 3<<20)
	rand.NewChaCha8([32]byte{}).Read(random)
	s := &shaky{faults: faults, asked: map[string][]string{}}
	s.layer = tartest.Of(t, file("random", string(random)), file("zeros", strings.Repeat("\x00", 2<<20)))
	digest := rootfs.Sum(s.layer)
	config := fmt.Sprintf(`{"os":"linux","architecture":%q,"rootfs":{"diff_ids":[]}}`, rootfs.Platform.Architecture)
	manifest, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
		"config": map[string]any{"mediaType": "application/vnd.oci.image.config.v1+json", "digest": rootfs.Sum([]byte(config)), "size": len(config)},
		"layers": []any{map[string]any{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": len(s.layer)}}})
	if err != nil {
		t.Fatal(err)
	}
	s.url, _ = serve(t, "127.0.0.1", false, func(w http.ResponseWriter, r *http.Request) {
		what, content := "ping", []byte("{}")
		switch r.URL.Path {
		case "/v2/app/manifests/x":
			what, content = "manifest", manifest
			w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
		case "/v2/app/blobs/" + rootfs.Sum([]byte(config)):
			what, content = "config", []byte(config)
		case "/v2/app/blobs/" + digest:
			what, content = "layer", s.layer
			w.Header().Set("ETag", `"one"`)
		}
		s.mu.Lock()
		n := len(s.asked[what])
		s.asked[what] = append(s.asked[what], r.Header.Get("Range"))
		s.mu.Unlock()
		if n < len(s.faults[what]) && s.faults[what][n](w, r, content) {
			return
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
	})
	return s
}

// build builds an image of the registry's, and returns it with the percents of its events. It
// expects the layer to be kept if the image is whole, and to leave nothing else.
func (s *shaky) build(t *testing.T) (vmm.ImageInfo, []int) {
	t.Helper()
	set, u := openTest(t, filepath.Join(t.TempDir(), "images"))
	set.transport, set.firstAgain = trusting(), time.Millisecond
	number := create(t, set, "app")
	_, host, _ := strings.Cut(s.url, "://")
	if err := set.Build(context.Background(), number, host+"/app:x", me(t)); err != nil {
		t.Fatal(err)
	}
	_, _ = set.Wait(context.Background(), number) // what it says is in the info
	i, _ := set.Info(number)
	kept, err := os.ReadFile(set.path(blobsName, layersName, blobKey(rootfs.Sum(s.layer))))
	if whole := i.Reason == arrived; whole != (err == nil) || whole && !bytes.Equal(kept, s.layer) {
		t.Errorf("%q, and its layer is kept with %d bytes, error %v", i.Reason, len(kept), err)
	}
	if left, _ := filepath.Glob(set.path(blobsName, layersName, ".*")); len(left) > 0 {
		t.Errorf("left are %q", left)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	var percents []int
	for _, event := range u.told {
		if text, ok := strings.CutPrefix(event, "app building "); ok {
			n, err := strconv.Atoi(text)
			if err != nil {
				t.Error(err)
			}
			percents = append(percents, n)
		}
	}
	return i, percents
}

// status answers with a status and a header.
func status(code int, header ...string) fault {
	return func(w http.ResponseWriter, _ *http.Request, _ []byte) bool {
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(code)
		return true
	}
}

// cut gives the right answer up to an offset in the whole, and cuts the connection.
func cut(at int) fault {
	return func(w http.ResponseWriter, r *http.Request, content []byte) bool {
		from := 0
		if text, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes="); ok {
			from, _ = strconv.Atoi(strings.TrimSuffix(text, "-"))
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(content)-1, len(content)))
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(content)-from))
		if from > 0 {
			w.WriteHeader(http.StatusPartialContent)
		}
		w.Write(content[from:max(from, at)])
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
}

// deaf ignores the Range and cuts the connection after some bytes, without a length before.
func deaf(bytes int) fault {
	return func(w http.ResponseWriter, _ *http.Request, content []byte) bool {
		w.Write(content[:bytes])
		w.(http.Flusher).Flush()
		if bytes < len(content) {
			panic(http.ErrAbortHandler)
		}
		return true
	}
}

// with changes a header of an answer that is right otherwise.
func with(key, value string) fault {
	return func(w http.ResponseWriter, _ *http.Request, _ []byte) bool {
		w.Header().Set(key, value)
		return false
	}
}

// lies answers a request for the rest with something else.
func lies(contentRange string, content func(whole []byte) []byte) fault {
	return func(w http.ResponseWriter, _ *http.Request, whole []byte) bool {
		w.Header().Set("Content-Range", contentRange)
		w.WriteHeader(http.StatusPartialContent)
		w.Write(content(whole))
		return true
	}
}

// TestBrokenRegistry builds images of a registry that breaks in every way that heals.
func TestBrokenRegistry(t *testing.T) {
	const mid = 1 << 20
	rest := []string{"", fmt.Sprintf("bytes=%d-", mid)}
	again := []string{"", fmt.Sprintf("bytes=%d-", mid), ""}
	soon := time.Now().Add(time.Second).UTC().Format(http.TimeFormat)
	size := len(newShaky(t, nil).layer)
	busy5 := slices.Repeat([]fault{status(500)}, maxAgain)
	for what, c := range map[string]struct {
		faults map[string][]fault
		asked  map[string][]string // the ranges of the requests, where they matter
	}{
		"whole":               {nil, map[string][]string{"layer": {""}, "manifest": {""}, "config": {""}}},
		"cut":                 {map[string][]fault{"layer": {cut(mid)}}, map[string][]string{"layer": rest}},
		"cut at the end":      {map[string][]fault{"layer": {cut(size)}}, map[string][]string{"layer": {""}}},
		"cut before the end":  {map[string][]fault{"layer": {cut(size - 1)}}, map[string][]string{"layer": {"", fmt.Sprintf("bytes=%d-", size-1)}}},
		"cut at once":         {map[string][]fault{"layer": slices.Repeat([]fault{cut(0)}, maxAgain)}, map[string][]string{"layer": slices.Repeat([]string{""}, maxAgain+1)}},
		"cut without length":  {map[string][]fault{"layer": {deaf(mid)}}, map[string][]string{"layer": rest}},
		"deaf":                {map[string][]fault{"layer": {cut(mid), deaf(size)}}, map[string][]string{"layer": rest}},
		"deaf and cut":        {map[string][]fault{"layer": {deaf(mid), deaf(mid / 2), deaf(mid)}}, nil},
		"another ETag":        {map[string][]fault{"layer": {cut(mid), with("ETag", `"two"`)}}, map[string][]string{"layer": again}},
		"no rest":             {map[string][]fault{"layer": {cut(mid), status(416)}}, map[string][]string{"layer": again}},
		"another place":       {map[string][]fault{"layer": {cut(mid), lies("bytes 0-9/10", func(b []byte) []byte { return b[:10] })}}, map[string][]string{"layer": again}},
		"another size":        {map[string][]fault{"layer": {cut(mid), lies(fmt.Sprintf("bytes %d-%d/99", mid, size-1), func(b []byte) []byte { return b[mid:] })}}, map[string][]string{"layer": again}},
		"no Content-Range":    {map[string][]fault{"layer": {cut(mid), lies("", func(b []byte) []byte { return b[mid:] })}}, map[string][]string{"layer": again}},
		"an unknown size":     {map[string][]fault{"layer": {cut(mid), lies(fmt.Sprintf("bytes %d-%d/*", mid, size-1), func(b []byte) []byte { return b[mid:] })}}, map[string][]string{"layer": rest}},
		"many cuts":           {map[string][]fault{"layer": {cut(1 << 18), cut(2 << 18), cut(3 << 18), cut(4 << 18), cut(5 << 18), cut(6 << 18), cut(7 << 18), cut(8 << 18)}}, nil},
		"busy":                {map[string][]fault{"layer": busy5}, map[string][]string{"layer": slices.Repeat([]string{""}, maxAgain+1)}},
		"busy with the rest":  {map[string][]fault{"layer": {cut(mid), status(503), status(502)}}, map[string][]string{"layer": {"", rest[1], rest[1], rest[1]}}},
		"too many":            {map[string][]fault{"layer": {status(429, "Retry-After", "1")}, "manifest": {status(429, "Retry-After", soon)}}, nil},
		"a past date":         {map[string][]fault{"layer": {status(429, "Retry-After", "Mon, 02 Jan 2006 15:04:05 GMT")}}, nil},
		"an odd Retry-After":  {map[string][]fault{"layer": {status(429, "Retry-After", "soon")}, "config": {status(429, "Retry-After", "-5")}}, nil},
		"busy with all else":  {map[string][]fault{"ping": {status(504)}, "manifest": busy5, "config": busy5}, nil},
		"all else is cut":     {map[string][]fault{"manifest": {cut(10)}, "config": {cut(10), cut(0)}}, nil},
		"a deaf registry end": {map[string][]fault{"layer": {deaf(size)}}, map[string][]string{"layer": {""}}},
	} {
		s := newShaky(t, c.faults)
		i, percents := s.build(t)
		if i.Reason != arrived {
			t.Errorf("%s: %s %s", what, i.Status, i.Reason)
		}
		if !slices.IsSorted(percents) {
			t.Errorf("%s: progress goes back: %d", what, percents)
		}
		for kind, want := range c.asked {
			if got := s.asked[kind]; !slices.Equal(got, want) {
				t.Errorf("%s: the %s was asked for with %q, not %q", what, kind, got, want)
			}
		}
	}
}

// TestRefusingRegistry expects that what does not heal is not tried again, and that trying ends.
func TestRefusingRegistry(t *testing.T) {
	const mid = 1 << 20
	wrong := func(w http.ResponseWriter, r *http.Request, content []byte) bool {
		b := bytes.Clone(content)
		b[len(b)/2] ^= 1
		w.Write(b)
		return true
	}
	short := func(w http.ResponseWriter, r *http.Request, content []byte) bool {
		w.Header().Set("Content-Length", "100")
		w.Write(content[:100])
		return true
	}
	long := func(w http.ResponseWriter, r *http.Request, content []byte) bool {
		w.Write(content)
		w.(http.Flusher).Flush()
		_, err := w.Write([]byte("more"))
		return err == nil
	}
	damagedRest := func(w http.ResponseWriter, r *http.Request, content []byte) bool {
		return lies(fmt.Sprintf("bytes %d-%d/%d", mid, len(content)-1, len(content)),
			func(b []byte) []byte { return make([]byte, len(b)-mid) })(w, r, content)
	}
	tomorrow := time.Now().Add(24 * time.Hour).UTC().Format(http.TimeFormat)
	for what, c := range map[string]struct {
		in     string
		faults []fault
		asked  int
		want   string
	}{
		"unauthorized":     {"layer", []fault{status(401)}, 1, "401"},
		"forbidden":        {"layer", []fault{status(403)}, 1, "403"},
		"not found":        {"layer", []fault{status(404)}, 1, "404"},
		"no manifest":      {"manifest", []fault{status(404)}, 1, "404"},
		"no configuration": {"config", []fault{status(404)}, 1, "1 whose files are missing"},
		"not implemented":  {"layer", []fault{status(501)}, 1, "501"},
		"a part unasked":   {"layer", []fault{status(206)}, 1, "206"},
		"damaged":          {"layer", []fault{wrong}, 1, "damaged"},
		"a damaged rest":   {"layer", []fault{cut(mid), damagedRest}, 2, "damaged"},
		"wrong config":     {"config", []fault{wrong}, 1, "damaged"},
		"short":            {"layer", []fault{short}, 1, "the registry has 100 bytes"},
		"long":             {"layer", []fault{long}, 1, "more than"},
		"always busy":      {"layer", slices.Repeat([]fault{status(500)}, 50), maxAgain + 1, "the registry answers 500 Internal Server Error; it was asked 6 times"},
		"always cut":       {"layer", slices.Repeat([]fault{cut(mid)}, 50), maxAgain + 1, "unexpected EOF; it was asked 6 times"},
		"always too many":  {"manifest", slices.Repeat([]fault{status(429)}, 50), maxAgain + 1, "429 Too Many Requests; it was asked 6 times"},
		"slow progress":    {"layer", []fault{cut(1), cut(2), cut(3), cut(4), cut(5), cut(6), cut(7)}, maxAgain + 1, "it was asked 6 times"},
		"a long wait":      {"layer", []fault{status(429, "Retry-After", "121")}, 1, "asks to wait 2m1s; write the source again then"},
		"until tomorrow":   {"manifest", []fault{status(503, "Retry-After", tomorrow)}, 1, "asks to wait 23h59m"},
		"a huge wait":      {"ping", slices.Repeat([]fault{status(429, "Retry-After", "4294967295")}, 2), 1, "asks to wait"},
	} {
		s := newShaky(t, map[string][]fault{c.in: c.faults})
		i, _ := s.build(t)
		if i.Status != vmm.ImageFailed || !strings.Contains(i.Reason, c.want) {
			t.Errorf("%s: %s %s, want %s", what, i.Status, i.Reason, c.want)
		}
		if got := len(s.asked[c.in]); got != c.asked {
			t.Errorf("%s: it was asked %d times, not %d", what, got, c.asked)
		}
	}
}

// TestCancelledWaits expects that rmdir ends the wait for a registry at once.
func TestCancelledWaits(t *testing.T) {
	for _, in := range []string{"manifest", "layer"} {
		asked := make(chan struct{}, 1)
		s := newShaky(t, map[string][]fault{in: {func(w http.ResponseWriter, _ *http.Request, _ []byte) bool {
			w.WriteHeader(http.StatusServiceUnavailable)
			asked <- struct{}{}
			return true
		}}})
		set, _ := openTest(t, filepath.Join(t.TempDir(), "images"))
		set.transport, set.firstAgain = trusting(), time.Hour
		number := create(t, set, "app")
		_, host, _ := strings.Cut(s.url, "://")
		if err := set.Build(context.Background(), number, host+"/app:x", me(t)); err != nil {
			t.Fatal(err)
		}
		set.mu.Lock()
		ended := set.items["app"].job.ended
		set.mu.Unlock()
		<-asked
		begun := time.Now()
		if err := set.Remove(context.Background(), "app", nil); err != nil {
			t.Fatal(err)
		}
		<-ended
		if took := time.Since(begun); took > 10*time.Second {
			t.Errorf("%s: it took %v", in, took)
		}
		left, err := filepath.Glob(set.path(blobsName, layersName, ".*"))
		if err != nil || len(left) > 0 {
			t.Errorf("%s: left are %q", in, left)
		}
	}
}

// TestMoved expects the bytes of a layer while it is fetched, and none afterwards.
func TestMoved(t *testing.T) {
	const part = 1 << 20
	rest := make(chan struct{})
	s := newShaky(t, map[string][]fault{"layer": {func(w http.ResponseWriter, r *http.Request, content []byte) bool {
		w.Write(content[:part])
		w.(http.Flusher).Flush()
		select {
		case <-rest:
		case <-r.Context().Done():
		}
		w.Write(content[part:])
		return true
	}}})
	set, _ := openTest(t, filepath.Join(t.TempDir(), "images"))
	set.transport = trusting()
	number := create(t, set, "app")
	_, host, _ := strings.Cut(s.url, "://")
	if err := set.Build(t.Context(), number, host+"/app:x", me(t)); err != nil {
		t.Fatal(err)
	}
	want := vmm.Moved{Bytes: part, Total: int64(len(s.layer))}
	var i vmm.ImageInfo
	for begun := time.Now(); i.Moved != want && time.Since(begun) < time.Minute; time.Sleep(time.Millisecond) {
		i, _ = set.Info(number)
	}
	if i.Moved != want || i.Percent == 0 {
		t.Errorf("%d %%, %+v, not %+v", i.Percent, i.Moved, want)
	}
	close(rest)
	_, _ = set.Wait(t.Context(), number)
	if i, _ = set.Info(number); i.Moved != (vmm.Moved{}) || i.Reason != arrived {
		t.Errorf("%+v, %s", i.Moved, i.Reason)
	}
}

// TestHeals expects that only what may be gone at the next try is tried again.
func TestHeals(t *testing.T) {
	for _, c := range []struct {
		err  error
		want bool
	}{
		{io.ErrUnexpectedEOF, true}, {&brokenError{io.EOF}, true}, {&busyError{status: "500"}, true},
		{fmt.Errorf("x: %w", context.DeadlineExceeded), true}, // of one request; the build's own ends it
		{context.Canceled, false}, {&brokenError{context.Canceled}, false}, {rootfs.ErrDamaged, false}, {errLong, false},
	} {
		if got := heals(c.err); got != c.want {
			t.Errorf("%v heals: %t", c.err, got)
		}
	}
}
