// Probe is the whole content of the image with which the tests try the cluster itself: it serves its own name,
// gets an address and looks a name up, so that a pod can ask a Service, the DNS and the API server.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

const identity = "/var/run/secrets/kubernetes.io/serviceaccount/"

func main() {
	log.SetFlags(0)
	if len(os.Args) < 2 {
		log.Fatal("usage: probe serve | get URL | api URL | lookup NAME")
	}
	switch os.Args[1] {
	case "serve":
		serve()
	case "get":
		get(os.Args[2], "", nil)
	case "api":
		api(os.Args[2])
	case "lookup":
		addresses, err := net.LookupHost(os.Args[2])
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(strings.Join(addresses, " "))
	default:
		log.Fatalf("unknown command %q", os.Args[1])
	}
}

// serve answers every request with the pod's name and writes one line of log for it, and one more with what it was
// told: a webhook's receiver, whose log is its memory.
func serve() {
	name, err := os.Hostname()
	if err != nil {
		log.Fatal(err)
	}
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Printf("asked for %s\n", r.URL.Path)
		if told, err := io.ReadAll(r.Body); err == nil && len(told) > 0 {
			fmt.Printf("told %s\n", strings.ReplaceAll(string(told), "\n", " "))
		}
		fmt.Fprintln(w, name)
	})
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGINT, syscall.SIGTERM)
	go func() { log.Fatal(http.ListenAndServe(":8080", nil)) }()
	fmt.Printf("%s serves\n", name)
	<-end
}

// api gets an address with the pod's service account, trusting the certificate authority that the pod was given.
func api(url string) {
	token, err := os.ReadFile(identity + "token")
	if err != nil {
		log.Fatal(err)
	}
	authority, err := os.ReadFile(identity + "ca.crt")
	if err != nil {
		log.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(authority) {
		log.Fatal("ca.crt holds no certificate")
	}
	get(url, string(token), pool)
}

// get prints the status and the body; every answer is an answer, only none is a failure.
func get(url, token string, authority *x509.CertPool) {
	request, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		log.Fatal(err)
	}
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: authority}}
	client := http.Client{Timeout: 10 * time.Second, Transport: transport}
	answer, err := client.Do(request)
	if err != nil {
		log.Fatal(err)
	}
	defer answer.Body.Close()
	fmt.Println(answer.StatusCode)
	io.Copy(os.Stdout, answer.Body)
}
