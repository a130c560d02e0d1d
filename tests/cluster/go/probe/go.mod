module korrigo.test/cluster/probe

go 1.26.0
