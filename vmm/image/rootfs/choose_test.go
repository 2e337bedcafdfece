package rootfs

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"banger/internal/tartest"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// shop is a Source of whatever was put in.
type shop map[string][]byte

func (s shop) Manifest(ctx context.Context, d *v1.Descriptor) ([]byte, error) { return s.Blob(ctx, d) }
func (s shop) Blob(_ context.Context, d *v1.Descriptor) ([]byte, error) {
	if b, ok := s[d.Digest.String()]; ok {
		return b, nil
	}
	return nil, ErrAbsent
}

// put returns the descriptor of a value's JSON.
func (s shop) put(kind types.MediaType, value any) v1.Descriptor {
	b, err := json.Marshal(value)
	if err != nil {
		panic(err)
	}
	s[Sum(b)] = b
	h, err := v1.NewHash(Sum(b))
	if err != nil {
		panic(err)
	}
	return v1.Descriptor{MediaType: kind, Size: int64(len(b)), Digest: h}
}

// image returns the descriptor of an image that runs name, without a platform of its own.
func (s shop) image(name, arch, variant string) v1.Descriptor {
	config := s.put(types.OCIConfigJSON, map[string]any{"os": "linux", "architecture": arch,
		"variant": variant, "config": map[string]any{"Cmd": []string{name}}})
	layer := v1.Descriptor{MediaType: types.OCILayer, Digest: config.Digest}
	return s.put(types.OCIManifestSchema1, v1.Manifest{SchemaVersion: 2,
		MediaType: types.OCIManifestSchema1, Config: config, Layers: []v1.Descriptor{layer}})
}

func on(d v1.Descriptor, platform string) v1.Descriptor {
	p := strings.Split(platform+"//", "/")
	d.Platform = &v1.Platform{OS: p[0], Architecture: p[1], Variant: p[2]}
	return d
}

func tagged(d v1.Descriptor, tag string) v1.Descriptor {
	d.Annotations = map[string]string{"org.opencontainers.image.ref.name": tag}
	return d
}

func index(all ...v1.Descriptor) v1.IndexManifest {
	return v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: all}
}

// TestChoose finds the image in sources as builders, signers and registries leave them.
func TestChoose(t *testing.T) {
	s := shop{}
	a, b := s.image("a", "amd64", ""), s.image("b", "amd64", "")
	v2, v3, arm := s.image("v2", "amd64", "v2"), s.image("v3", "amd64", "v3"), s.image("arm", "arm64", "v8")
	// The same image as docker's kind of manifest, with its layers compressed in another way.
	var m v1.Manifest
	if err := json.Unmarshal(s[a.Digest.String()], &m); err != nil {
		t.Fatal(err)
	}
	m.MediaType, m.Layers[0].MediaType, m.Layers[0].Digest = types.DockerManifestSchema2, types.DockerLayer, b.Digest
	same := s.put(types.DockerManifestSchema2, m)
	// What cosign, ORAS, Helm and BuildKit put beside images.
	signature := func(layer, artifactType string, config types.MediaType) v1.Descriptor {
		c := s.put(config, map[string]any{"os": "linux", "architecture": "amd64"})
		return s.put(types.OCIManifestSchema1, v1.Manifest{SchemaVersion: 2, Config: c,
			ArtifactType: artifactType, Layers: []v1.Descriptor{{MediaType: types.MediaType(layer), Digest: c.Digest}}})
	}
	cosign := tagged(signature("application/vnd.dev.cosign.simplesigning.v1+json", "", types.OCIConfigJSON), "sha256-1.sig")
	sbom := signature("text/spdx+json", "", types.OCIConfigJSON)
	oras := signature("application/octet-stream", "application/spdx+json", types.OCIEmptyJSON)
	helm := signature("application/vnd.cncf.helm.chart.content.v1.tar+gzip", "", "application/vnd.cncf.helm.config.v1+json")
	typed := a
	typed.Digest, typed.ArtifactType = b.Digest, "application/spdx+json"
	attestation := on(s.image("attestation", "unknown", ""), "unknown/unknown")
	attestation.Annotations = map[string]string{"vnd.docker.reference.type": "attestation-manifest"}
	around := []v1.Descriptor{cosign, sbom, oras, helm, attestation, typed}
	missing := s.image("missing", "amd64", "")
	delete(s, missing.Digest.String())
	nested := s.put(types.OCIImageIndex, index(on(arm, "linux/arm64/v8"), on(a, "linux/amd64"), attestation))
	docker := s.put(types.DockerManifestList, index(on(same, "linux/amd64"), on(arm, "linux/arm64")))
	deep := nested
	for range 5 {
		deep = s.put(types.OCIImageIndex, index(deep))
	}
	loop := s.put(types.OCIImageIndex, map[string]any{"manifests": 7})
	schema1 := s.put(types.DockerManifestSchema1Signed, map[string]any{"schemaVersion": 1, "fsLayers": []string{}})
	untyped := a
	untyped.MediaType = ""
	windows := on(a, "windows/amd64")
	windows.Digest = b.Digest
	var many []v1.Descriptor
	for i := range 200 {
		many = append(many, s.image(fmt.Sprint(i), "amd64", ""))
	}
	for what, c := range map[string]struct {
		in           []v1.Descriptor
		digest, want string // want is what the image runs, or what the error has
	}{
		"one":                        {in: []v1.Descriptor{a}, want: "a"},
		"two tags":                   {in: []v1.Descriptor{tagged(a, "1"), tagged(a, "latest")}, want: "a"},
		"two kinds of manifest":      {in: []v1.Descriptor{a, same, on(same, "linux/amd64")}, want: "a"},
		"everything around":          {in: append([]v1.Descriptor{a}, around...), want: "a"},
		"around first":               {in: append(around[:len(around):len(around)], a), want: "a"},
		"variants, plain last":       {in: []v1.Descriptor{on(v3, "linux/amd64/v3"), on(v2, "linux/amd64/v2"), on(a, "linux/amd64")}, want: "a"},
		"v1 is plain":                {in: []v1.Descriptor{on(v2, "linux/amd64/v2"), on(a, "linux/amd64/v1")}, want: "a"},
		"the least variant":          {in: []v1.Descriptor{on(v3, "linux/amd64/v3"), on(v2, "linux/amd64/v2")}, want: "v2"},
		"variants of configurations": {in: []v1.Descriptor{v3, v2, a, arm}, want: "a"},
		"no platforms":               {in: []v1.Descriptor{arm, a}, want: "a"},
		"half a platform":            {in: []v1.Descriptor{on(arm, "linux"), on(a, "linux")}, want: "a"},
		"another name":               {in: []v1.Descriptor{on(arm, "linux/aarch64"), on(a, "Linux/x86_64")}, want: "a"},
		"nested":                     {in: []v1.Descriptor{nested}, want: "a"},
		"nested twice":               {in: []v1.Descriptor{tagged(nested, "1"), tagged(nested, "2"), a}, want: "a"},
		"docker's list":              {in: []v1.Descriptor{docker, windows}, want: "a"},
		"without a media type":       {in: []v1.Descriptor{untyped}, want: "a"},
		"a missing one beside it":    {in: []v1.Descriptor{missing, a}, want: "a"},
		"chosen":                     {in: []v1.Descriptor{a, b}, digest: b.Digest.String(), want: "b"},
		"chosen variant":             {in: []v1.Descriptor{on(v3, "linux/amd64/v3"), on(a, "linux/amd64")}, digest: v3.Digest.String(), want: "v3"},
		"chosen index":               {in: []v1.Descriptor{b, nested}, digest: nested.Digest.String(), want: "a"},
		"chosen within":              {in: []v1.Descriptor{b, nested}, digest: a.Digest.String(), want: "a"},

		"two": {in: []v1.Descriptor{tagged(a, "1.0"), tagged(b, "2.0"), tagged(a, "latest")},
			want: "it has 2 images for linux/amd64; choose one, HOW: " + a.Digest.String() + ` ("1.0, latest"), ` + b.Digest.String() + ` ("2.0")`},
		"two below":         {in: []v1.Descriptor{nested, b}, want: "it has 2 images"},
		"many":              {in: many[:20], want: "and 12 more"},
		"too many":          {in: many, want: "more than 128 manifests"},
		"chosen, not there": {in: []v1.Descriptor{a}, digest: b.Digest.String(), want: "it has no image " + b.Digest.String() + " for linux/amd64; it has 1 of other digests"},
		"chosen, elsewhere": {in: []v1.Descriptor{a, on(arm, "linux/arm64")}, digest: arm.Digest.String(), want: "images for linux/arm64; 1 of other digests"},
		"only arm64":        {in: []v1.Descriptor{on(arm, "linux/arm64/v8"), windows}, want: "it has no image for linux/amd64; it has images for linux/arm64/v8, windows/amd64"},
		"only arm64, plain": {in: []v1.Descriptor{arm}, want: "images for linux/arm64/v8"},
		"an odd variant":    {in: []v1.Descriptor{on(a, "linux/amd64/\x1b[2J")}, want: `linux/amd64/"\x1b[2J"`},
		"only artifacts":    {in: around, want: "6 artifacts that are no images"},
		"one artifact":      {in: []v1.Descriptor{helm}, want: `1 artifact that is no image ("application/vnd.cncf.helm.config.v1+json")`},
		"only missing":      {in: []v1.Descriptor{on(missing, "linux/amd64")}, want: "1 whose files are missing, " + missing.Digest.String()},
		"nothing":           {want: "it has nothing else"},
		"schema 1":          {in: []v1.Descriptor{schema1}, want: "schema 1, as docker wrote before 2017"},
		"deep":              {in: []v1.Descriptor{deep}, want: "indexes of indexes"},
		"no index":          {in: []v1.Descriptor{loop}, want: "its index cannot be read"},
	} {
		text, err := json.Marshal(index(c.in...))
		if err != nil {
			t.Fatal(err)
		}
		found, err := Choose(context.Background(), s, v1.Descriptor{MediaType: types.OCIImageIndex}, text, c.digest, "HOW")
		if err != nil {
			if !strings.Contains(err.Error(), c.want) || len(c.want) < 4 {
				t.Errorf("%s: %v, want %s", what, err, c.want)
			}
			continue
		}
		if got := found.Config.Config.Cmd[0]; got != c.want {
			t.Errorf("%s: it is %s, want %s", what, got, c.want)
		}
	}
	// A registry may answer with one manifest, and of any type.
	for _, kind := range []types.MediaType{"", "text/plain", types.OCIManifestSchema1} {
		for digest, text := range map[string]string{a.Digest.String(): "a", nested.Digest.String(): "a", schema1.Digest.String(): "schema 1"} {
			if kind != "" && kind.IsImage() && digest == nested.Digest.String() {
				continue
			}
			h, _ := v1.NewHash(digest)
			found, err := Choose(context.Background(), s, v1.Descriptor{MediaType: kind, Digest: h}, s[digest], "", "HOW")
			if err == nil && found.Config.Config.Cmd[0] != text || err != nil && (text == "a" || !strings.Contains(err.Error(), text)) {
				t.Errorf("%q as %q: %v", text, kind, err)
			}
		}
	}
}

// TestArchives finds the images of layouts and of docker's archives, as directories and as tars.
func TestArchives(t *testing.T) {
	s := shop{}
	a, b := s.image("a", "amd64", ""), s.image("b", "amd64", "")
	gone := on(s.image("gone", "amd64", ""), "linux/amd64")
	delete(s, gone.Digest.String())
	layout, err := json.Marshal(index(tagged(a, "1"), tagged(b, "2"), tagged(a, "3"), gone))
	if err != nil {
		t.Fatal(err)
	}
	configs := map[string]string{}
	type entry = map[string]any
	var entries []entry
	for _, c := range []struct{ name, arch, tag string }{
		{"a", "amd64", "app:1"}, {"b", "amd64", "app:2"}, {"a", "amd64", "app:3"}, {"arm", "arm64", "app:4"}} {
		d := s.put("", map[string]any{"os": "linux", "architecture": c.arch, "config": map[string]any{"Cmd": c.name}})
		configs[c.name] = d.Digest.String()
		entries = append(entries, entry{"Config": blobPath(d.Digest), "RepoTags": []string{c.tag}, "Layers": []string{"layer"}})
	}
	archive := func(entries ...entry) []byte {
		b, err := json.Marshal(entries)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for what, c := range map[string]struct {
		docker       []byte
		digest, want string
	}{
		"layout, several":    {nil, "", "choose one, as PATH@DIGEST: " + a.Digest.String() + ` ("1, 3"), ` + b.Digest.String() + ` ("2")`},
		"layout, chosen":     {nil, b.Digest.String(), "b"},
		"layout, missing":    {nil, gone.Digest.String(), "1 whose files are missing"},
		"archive, several":   {archive(entries...), "", "it has 2 images for linux/amd64; choose one, as PATH@DIGEST: " + configs["a"] + ` ("app:1, app:3"), ` + configs["b"]},
		"archive, chosen":    {archive(entries...), configs["b"], "b"},
		"archive, two names": {archive(entries[0], entries[2], entries[3]), "", "a"},
		"archive, only arm":  {archive(entries[3]), "", "it has images for linux/arm64"},
		"archive, not there": {archive(entries[0]), configs["b"], "1 of other digests"},
		"archive, missing":   {archive(entry{"Config": "none.json"}), "", `"none.json": it is not there`},
	} {
		dir := t.TempDir()
		files := map[string][]byte{"layer": []byte("x"), "index.json": layout, "manifest.json": c.docker}
		for digest, text := range s {
			files["blobs/sha256/"+strings.TrimPrefix(digest, "sha256:")] = text
		}
		var headers []tar.Header
		for name, text := range files {
			path := filepath.Join(dir, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, text, 0o644); err != nil {
				t.Fatal(err)
			}
			headers = append(headers, file(name, string(text)))
		}
		whole := filepath.Join(dir, "whole.tar")
		if err := os.WriteFile(whole, bytes.Clone(tartest.Of(t, headers...)), 0o644); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(whole)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		packed, err := OpenTar(context.Background(), f)
		if err != nil {
			t.Fatal(err)
		}
		plain := OpenDirectory(func(name string) (*os.File, error) {
			f, err := os.Open(filepath.Join(dir, name))
			if os.IsNotExist(err) {
				err = fmt.Errorf("%q: %w", name, ErrAbsent)
			}
			return f, err
		})
		for _, from := range []*Archive{packed, plain} {
			find := from.OCI
			if c.docker != nil {
				find = from.Docker
			}
			i, err := find(context.Background(), c.digest)
			switch {
			case err != nil && !strings.Contains(err.Error(), c.want):
				t.Errorf("%s: %v, want %s", what, err, c.want)
			case err == nil && i.Config.Config.Cmd[0] != c.want:
				t.Errorf("%s: it is %s, want %s", what, i.Config.Config.Cmd[0], c.want)
			}
		}
	}
}

// FuzzChoose reads a stranger's index, manifest and configuration.
func FuzzChoose(f *testing.F) {
	f.Add(`{"manifests":[{"mediaType":"","digest":"","platform":{"os":"linux","architecture":"amd64","variant":"v2"}}]}`,
		`{"config":{"mediaType":""},"layers":[{"mediaType":""}]}`,
		`{"config":{"Cmd":"a","Env":["=","A=b"],"StopSignal":"RTMAX-1","ExposedPorts":{"1/udp":{}},"Healthcheck":{"Test":["CMD","a"]}}}`)
	f.Add(`{"schemaVersion":1,"manifests":[{"mediaType":"application/vnd.oci.image.index.v1+json"}]}`, `{"manifests":[]}`, `null`)
	f.Fuzz(func(t *testing.T, index, manifest, config string) {
		s := shop{}
		c := s.put("", json.RawMessage(clean(config)))
		m := s.put("", json.RawMessage(clean(strings.ReplaceAll(manifest, `"mediaType":""`, `"digest":"`+c.Digest.String()+`"`))))
		index = strings.ReplaceAll(index, `"digest":""`, `"digest":"`+m.Digest.String()+`"`)
		found, err := Choose(context.Background(), s, v1.Descriptor{MediaType: types.OCIImageIndex}, []byte(index), "", "HOW")
		if err != nil {
			return
		}
		i := &Image{Config: found.Config}
		if p, err := i.Program(); err == nil && p.Dir != "" && !strings.HasPrefix(p.Dir, "/") {
			t.Errorf("the directory is %q", p.Dir)
		}
		if len(i.Exposed()) > maxExposed {
			t.Error("too many ports")
		}
		i.Healthcheck()
		_ = i.Check()
	})
}

// clean returns text if it is JSON, else null.
func clean(text string) string {
	if json.Valid([]byte(text)) {
		return text
	}
	return "null"
}
