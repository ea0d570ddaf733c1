package main

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func visit(a *app, method string) (int, string) {
	answer := httptest.NewRecorder()
	a.ServeHTTP(answer, httptest.NewRequest(method, "/", nil))
	return answer.Code, answer.Body.String()
}

func TestVisitsAreCountedAcrossRestarts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "visits")
	var got []string
	for range 2 {
		_, text := visit(&app{hostname: "box", counter: counter{path: path}}, http.MethodGet)
		got = append(got, text)
	}
	want := []string{"hello from webapp 1.0 in box, visit 1\n", "hello from webapp 1.0 in box, visit 2\n"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("answers (-want +got):\n%s", diff)
	}
}

func TestDamagedCountIsNoFreshStart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "visits")
	if err := os.WriteFile(path, []byte("many\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	code, text := visit(&app{counter: counter{path: path}}, http.MethodGet)
	if code != http.StatusInternalServerError || !strings.Contains(text, path) {
		t.Errorf("answer %d %q, want 500 and the file's name", code, text)
	}
}

func TestOnlyGETIsAVisit(t *testing.T) {
	path := filepath.Join(t.TempDir(), "visits")
	if code, _ := visit(&app{counter: counter{path: path}}, http.MethodPost); code != http.StatusMethodNotAllowed {
		t.Errorf("POST: %d", code)
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("a POST was counted: %v", err)
	}
}
